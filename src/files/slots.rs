//! The system calls that take slots and give them back.

use nix::libc::{F_RDLCK, flock};

use super::os::OpenFile;
use super::ranges::{NUMBERS, SLOTS_HELD, TURN, number, slots};
use distrilock_engine::Mode;
use distrilock_engine::steps::call::CallResult as Answer;

impl OpenFile {
    pub(super) fn lock_turn(&mut self) -> Answer {
        self.set(Some(Mode::Exclusive), TURN)
    }

    pub(super) fn unlock_turn(&mut self) -> Answer {
        self.set(None, TURN)
    }

    pub(super) fn lock_held(&mut self) -> Answer {
        self.set(Some(Mode::Shared), SLOTS_HELD)
    }

    /// Nobody else changes its number meanwhile, since that is done by the process whose turn it is.
    pub(super) fn lock_number(&mut self, of: u16) -> Answer {
        let file = self;
        let (start, _) = number(of);
        let before = (NUMBERS.0, start - NUMBERS.0);
        let after = (start + 1, NUMBERS.0 + NUMBERS.1 - start - 1);
        for range in [before, after] {
            // A length of 0 would mean everything.
            if range.1 > 0 {
                match file.ask(Mode::Exclusive, range) {
                    Ok(None) => {}
                    Ok(Some(found)) => return Answer::Uses(mode_of(&found)),
                    Err(answer) => return answer,
                }
            }
        }
        let answer = file.set(Some(Mode::Shared), number(of));
        if answer == Answer::Yes {
            file.locked = Some(Mode::Slots(of));
        }
        answer
    }

    pub(super) fn uses(&mut self) -> Answer {
        match self.ask(Mode::Exclusive, NUMBERS) {
            // Who deletes the file does not use it.
            Ok(Some(found)) if found.l_start > 0 && mode_of(&found) == Mode::Exclusive => Answer::No,
            Ok(Some(found)) => Answer::Uses(mode_of(&found)),
            Ok(None) => Answer::No,
            Err(answer) => answer,
        }
    }

    pub(super) fn lock_slots(&mut self, of: u16, take: u16) -> Answer {
        let file = self;
        let mut free = Vec::new();
        if let Err(answer) = file.free_slots(0, of, &mut free) {
            return answer;
        }
        free.retain(|slot| !file.slots.contains(slot));
        free.truncate(take.into());
        if free.len() < take.into() {
            return Answer::No;
        }
        for (n, slot) in free.iter().enumerate() {
            let answer = file.set(Some(Mode::Exclusive), slots(*slot, 1));
            if answer != Answer::Yes {
                // Another program locks what it should not: what was taken goes back.
                for taken in &free[..n] {
                    file.set(None, slots(*taken, 1));
                }
                return answer;
            }
        }
        file.slots.extend(&free);
        file.slots.sort_unstable();
        Answer::Slots(free.into())
    }

    pub(super) fn unlock_slots(&mut self, first: u16, count: u16) -> Answer {
        let file = self;
        let answer = file.set(None, slots(first, count));
        if answer == Answer::Yes {
            file.slots.retain(|slot| !(first..first + count).contains(slot));
        }
        answer
    }
}

impl OpenFile {
    /// Which slots no other process has, from one to before another, in their order: the kernel names one lock that is in the
    /// way, and what lies on both sides of it is asked for in turn.
    fn free_slots(&self, from: u16, to: u16, free: &mut Vec<u16>) -> Result<(), Answer> {
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

/// In which mode the process has the file whose lock is in the way of the numbers.
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

    /// Processes take slots between and behind those of others, never one that is taken, and all they asked for or none; what one
    /// gives back, or loses as it closes the file, is free for the next.
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
