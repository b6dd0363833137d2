//! The system calls by which a daemon takes slots and gives them back.

use nix::libc::{F_RDLCK, flock};

use super::lock_file::OpenFile;
use super::ranges::{NUMBERS, SLOTS_HELD, TURN, number, slots};
use distrilock_engine::Mode;
use distrilock_engine::steps::call::CallResult;

impl OpenFile {
    pub(super) fn lock_turn(&mut self) -> CallResult {
        self.set(Some(Mode::Exclusive), TURN)
    }

    pub(super) fn unlock_turn(&mut self) -> CallResult {
        self.set(None, TURN)
    }

    pub(super) fn lock_held(&mut self) -> CallResult {
        self.set(Some(Mode::Shared), SLOTS_HELD)
    }

    /// No other process changes the number of slots in between: only the one whose turn it is may.
    pub(super) fn lock_number(&mut self, of: u16) -> CallResult {
        let file = self;
        let (start, _) = number(of);
        let before = (NUMBERS.0, start - NUMBERS.0);
        let after = (start + 1, NUMBERS.0 + NUMBERS.1 - start - 1);
        for range in [before, after] {
            // A length of 0 would mean everything.
            if range.1 > 0 {
                match file.ask(Mode::Exclusive, range) {
                    Ok(None) => {}
                    Ok(Some(found)) => return CallResult::Uses(mode_of(&found)),
                    Err(answer) => return answer,
                }
            }
        }
        let answer = file.set(Some(Mode::Shared), number(of));
        if answer == CallResult::Yes {
            file.locked = Some(Mode::Slots(of));
        }
        answer
    }

    pub(super) fn uses(&mut self) -> CallResult {
        match self.ask(Mode::Exclusive, NUMBERS) {
            // A process that deletes the file does not use it.
            Ok(Some(found)) if found.l_start > 0 && mode_of(&found) == Mode::Exclusive => CallResult::No,
            Ok(Some(found)) => CallResult::Uses(mode_of(&found)),
            Ok(None) => CallResult::No,
            Err(answer) => answer,
        }
    }

    pub(super) fn lock_slots(&mut self, of: u16, take: u16) -> CallResult {
        let file = self;
        let mut free = Vec::new();
        if let Err(answer) = file.free_slots(0, of, &mut free) {
            return answer;
        }
        free.retain(|slot| !file.slots.contains(slot));
        free.truncate(take.into());
        if free.len() < take.into() {
            return CallResult::No;
        }
        for (n, slot) in free.iter().enumerate() {
            let answer = file.set(Some(Mode::Exclusive), slots(*slot, 1));
            if answer != CallResult::Yes {
                // Another program locks what it should not. Give back what was taken.
                for taken in &free[..n] {
                    file.set(None, slots(*taken, 1));
                }
                return answer;
            }
        }
        file.slots.extend(&free);
        file.slots.sort_unstable();
        CallResult::Slots(free.into())
    }

    pub(super) fn unlock_slots(&mut self, first: u16, count: u16) -> CallResult {
        let file = self;
        let answer = file.set(None, slots(first, count));
        if answer == CallResult::Yes {
            file.slots.retain(|slot| !(first..first + count).contains(slot));
        }
        answer
    }
}

impl OpenFile {
    /// Appends to `free`, in ascending order, the slots from `from` to before `to` that no other
    /// process has. The kernel returns one lock that is in the way; both sides of it are then asked
    /// for in turn.
    fn free_slots(&self, from: u16, to: u16, free: &mut Vec<u16>) -> Result<(), CallResult> {
        if from == to {
            return Ok(());
        }
        let (start, length) = slots(from, to - from);
        let Some(found) = self.ask(Mode::Exclusive, (start, length))? else {
            free.extend(from..to);
            return Ok(());
        };
        let place = |offset: i64| u16::try_from((offset - start).clamp(0, length)).expect("there are few slots") + from;
        let end = if found.l_len == 0 { i64::MAX } else { found.l_start + found.l_len };
        self.free_slots(from, place(found.l_start), free)?;
        self.free_slots(place(end), to, free)
    }
}

/// The mode in which a process uses the file, given its lock among the numbers of slots.
fn mode_of(found: &flock) -> Mode {
    if i32::from(found.l_type) != F_RDLCK {
        return Mode::Exclusive;
    }
    u16::try_from(found.l_start - NUMBERS.0).map_or(Mode::Shared, Mode::Slots)
}

#[cfg(test)]
mod tests {
    use crate::files::{Files, OpenFile};
    use distrilock_engine::{FileOp, Mode, Outcome};
    use distrilock_protocol::name::LockName;

    /// Processes take slots between and behind those of others, never one that is taken, and either
    /// all that they asked for or none. Slots that a process gives back, or loses by closing the
    /// file, are free for the next one.
    #[test]
    fn gaps_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::new(directory.path().into());
        let name = LockName::parse(b"n").unwrap();
        let take = |of, take| files.perform(&name, FileOp::Take { of, take, joins: false, fence: false }, None);
        let taken = |(file, outcome): (Option<OpenFile>, Outcome)| match outcome {
            Outcome::Taken { slots, .. } => (file.unwrap(), slots.to_vec()),
            outcome => panic!("{outcome:?}"),
        };
        let (a, slots) = taken(take(10, 3));
        assert_eq!(slots, [0, 1, 2]);
        let (b, slots) = taken(take(10, 3));
        assert_eq!(slots, [3, 4, 5]);
        let (a, outcome) = files.perform(&name, FileOp::Give { of: 10, first: 1, count: 1 }, Some(a));
        assert_eq!(outcome, Outcome::Given);
        let (_c, slots) = taken(take(10, 4));
        assert_eq!(slots, [1, 6, 7, 8]);
        assert_eq!(take(10, 2).1, Outcome::Refused);
        let joined = FileOp::Take { of: 10, take: 1, joins: true, fence: false };
        let (_a, slots) = taken(files.perform(&name, joined, a));
        assert_eq!(slots, [9]);
        assert_eq!(take(11, 1).1, Outcome::Disagrees(Mode::Slots(10)));
        assert_eq!(take(9, 1).1, Outcome::Disagrees(Mode::Slots(10)));
        drop(b);
        let (_d, slots) = taken(take(10, 3));
        assert_eq!(slots, [3, 4, 5]);
    }
}
