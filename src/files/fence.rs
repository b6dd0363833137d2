//! Fences: per-name numbers that only increase (fencing tokens). A name's last fence is in its lock
//! file, written there under the lock. But a lock file can vanish: it is deleted when nobody uses
//! it, or by hand, or by a loss of power before its directory was written. So the fences of a file
//! that has none start above the [`Mark`] of the lock directory. A torn text in a lock file is as
//! good as none, since the mark is above it.

use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::fdatasync;

use super::fence_mark::{Mark, waited};
use super::fence_text::{Content, TEXT_BYTES, content, text};
use super::lock_file::OpenFile;
use super::ranges::FENCE;
use crate::limits::FENCE_WAIT_MS_MAX;
use distrilock_engine::Mode;
use distrilock_engine::fault::{Cause, Fault, Operation};
use distrilock_engine::steps::call::CallResult;

impl OpenFile {
    /// Takes the next fence: waits for other processes and for the disk. An exclusive holder is
    /// alone; others exclude each other while they do it.
    pub(super) fn take_fence(&self, mode: Mode, mark: &Mark) -> CallResult {
        if mode == Mode::Exclusive {
            return self.fence(mark);
        }
        let answer = waited(FENCE_WAIT_MS_MAX, || match self.set(Some(Mode::Exclusive), FENCE) {
            CallResult::No => None,
            answer => Some(answer),
        });
        match answer {
            Some(CallResult::Yes) => {
                let fence = self.fence(mark);
                // If the unlock fails, the byte is unlocked together with the name. Until then
                // others wait, and are refused with that reason.
                self.set(None, FENCE);
                fence
            }
            Some(answer) => answer,
            None => self.failed_for(Cause::FenceBusy),
        }
    }

    fn failed_for(&self, cause: Cause) -> CallResult {
        CallResult::Failed(Fault { cause, path: self.path.to_string_lossy().into() })
    }

    fn fence(&self, mark: &Mark) -> CallResult {
        let mut bytes = [0; TEXT_BYTES + 1];
        let last = match pread(self.descriptor(), &mut bytes, 0).map(|count| content(&bytes[..count])) {
            Ok(Content::Nothing) => None,
            Ok(Content::Fence(number)) => Some(number),
            Ok(Content::Foreign) => return self.failed_for(Cause::ForeignContent),
            Err(errno) => return self.failed(Operation::Read, errno),
        };
        let fence = match mark.next(last, &self.path) {
            Ok(fence) => fence,
            Err(fault) => return CallResult::Failed(fault),
        };
        let text = text(fence);
        let written = pwrite(self.descriptor(), text.as_bytes(), 0).and_then(|count| match count {
            TEXT_BYTES => fdatasync(self.descriptor()),
            _ => Err(Errno::ENOSPC),
        });
        match written {
            Ok(()) => CallResult::Fence(fence),
            Err(errno) => self.failed(Operation::Write, errno),
        }
    }
}
