//! Requests of version 0.1 and their replies, word for word like the original's (docs/protocol.md,
//! chapter 8).

use super::budgets::Full;
use super::{Kind, ReplyTo, Session};
use distrilock_engine::fault::{Fault, Operation};
use distrilock_engine::{Answer, Input, Mode};
use distrilock_protocol::Form;
use distrilock_protocol::name::{LockName, NameError};
use distrilock_protocol::v0::{self, Outcome, Reply, Request};

impl Session {
    pub(super) fn request_v0(&mut self, request: &Request, form: Form, out: &mut Vec<u8>) {
        if request.major > 0 {
            return;
        }
        let command = request.command;
        let known = (v0::PEEK..=v0::VERIFY).contains(&command);
        let name = match LockName::parse(&request.name) {
            Err(NameError::Empty | NameError::Byte { .. }) => {
                return self.answer_v0(form, command, &request.name, Outcome::BadRequest, v0::INVALID_NAME, out);
            }
            _ if !known => {
                return self.answer_v0(form, command, &request.name, Outcome::BadRequest, v0::UNKNOWN_COMMAND, out);
            }
            Err(NameError::TooLong { .. }) => return self.too_long(form, command, &request.name, out),
            Ok(name) => name,
        };
        let to = ReplyTo::V0(form, command);
        match command {
            // The session waits for this name with a request of version 1.
            v0::ACQUIRE if self.asking.acquires(&name) => {
                self.answer_v0(form, command, &request.name, Outcome::Failed, v0::OTHER_SESSION, out);
            }
            // The same, for several names, and that request may have this one already.
            v0::RELEASE | v0::VERIFY if self.only_gathers(&name) => {
                self.answer_v0(form, command, &request.name, Outcome::Failed, v0::NOT_FOUND, out);
            }
            v0::ACQUIRE => self.acquire_v0(&name, form, command, out),
            // The original deletes the file, and reports if somebody has already done so.
            v0::RELEASE => self.ask(&name, Kind::Release, to, out, Input::ReleaseAndLook),
            v0::VERIFY => self.ask(&name, Kind::Verify, to, out, Input::Verify),
            _ => self.ask(&name, Kind::Peek, to, out, Input::Peek),
        }
    }

    fn acquire_v0(&mut self, name: &LockName, form: Form, command: u8, out: &mut Vec<u8>) {
        let new = usize::from(!self.held.contains(name));
        if let Some(full) = self.refusal_of_locks(new) {
            let reason = match full {
                Full::Session => {
                    format!("this session has {} locks, as many as it may", self.table.settings.locks_per_session)
                }
                Full::Daemon => "all sessions together have as many locks as they may".into(),
            };
            return self.answer_v0(form, command, name.as_str().as_bytes(), Outcome::Failed, &reason, out);
        }
        let input = |asked| Input::Acquire { asked, want: Mode::Exclusive.into(), wait: false };
        self.ask(name, Kind::Try, ReplyTo::V0(form, command), out, input);
    }

    /// The original notices when it opens the file. Commands that open none find no lock.
    fn too_long(&mut self, form: Form, command: u8, name: &[u8], out: &mut Vec<u8>) {
        if matches!(command, v0::RELEASE | v0::VERIFY) {
            return self.answer_v0(form, command, name, Outcome::Failed, v0::NOT_FOUND, out);
        }
        let path = self.table.storage.lock_path(&String::from_utf8_lossy(name));
        let fault = Fault::system(Operation::Open, path, nix::libc::ENAMETOOLONG);
        self.answer_v0(form, command, name, Outcome::InternalError, &fault.to_string(), out);
    }

    pub(super) fn reply_v0(&mut self, form: Form, command: u8, name: &LockName, answer: Answer, out: &mut Vec<u8>) {
        let (outcome, reason) = match answer {
            Answer::Granted { already: true, .. } => (Outcome::Success, v0::NO_OP.into()),
            Answer::Granted { .. }
            | Answer::Released { file_gone: false }
            | Answer::Real
            | Answer::RealWith { .. }
            // Version 0.1 cannot ask for a stamp.
            | Answer::Stamped(_) => (Outcome::Success, "".into()),
            Answer::Released { file_gone: true } => (Outcome::InternalError, self.removed(name)),
            Answer::QueueFull if matches!(command, v0::PEEK | v0::VERIFY) => {
                (Outcome::InternalError, "too many requests".into())
            }
            Answer::BusyHere(_)
            | Answer::QueueFull
            | Answer::NotHeld { by_another: true }
            | Answer::Mismatch
            | Answer::Disagrees { .. } => (Outcome::Failed, v0::OTHER_SESSION.into()),
            Answer::BusyElsewhere => (Outcome::Failed, v0::OTHER_PROCESS.into()),
            Answer::NotHeld { by_another: false } | Answer::Lost(_) => (Outcome::Failed, v0::NOT_FOUND.into()),
            Answer::Peeked(view) => {
                let is_locked = view.contender || view.holders_total > 0;
                let name = name.as_str().as_bytes();
                let reply = Reply { command, name, outcome: Outcome::Success, reason: "", is_locked };
                return self.codec.reply_v0(form, &reply, out);
            }
            // The original omits the path where fcntl fails, which has only a descriptor.
            Answer::Storage(fault) if fault.operation() == Operation::Lock => {
                (Outcome::InternalError, fault.reason().into())
            }
            Answer::Storage(fault) => (Outcome::InternalError, fault.to_string().into()),
            // The session ends with this; version 0.1 has no waits that could be cancelled.
            Answer::Closing | Answer::Cancelled | Answer::TimedOut | Answer::Deadlock(_) => {
                (Outcome::Failed, "the daemon stops".into())
            }
        };
        self.answer_v0(form, command, name.as_str().as_bytes(), outcome, &reason, out);
    }

    fn removed(&self, name: &LockName) -> std::borrow::Cow<'static, str> {
        let path = self.table.storage.lock_path(name.as_str());
        Fault::system(Operation::Remove, path, nix::libc::ENOENT).to_string().into()
    }

    fn answer_v0(&mut self, form: Form, command: u8, name: &[u8], outcome: Outcome, reason: &str, out: &mut Vec<u8>) {
        self.codec.reply_v0(form, &Reply { command, name, outcome, reason, is_locked: false }, out);
    }
}
