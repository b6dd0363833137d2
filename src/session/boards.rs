//! Requests about the locks of all daemons of the directory: `peek` and `list` with `all`. Other
//! daemons' boards tell what is beyond this daemon (`lock_table::boards`). If they were not read
//! just now, the session keeps the question until they are.

use super::Session;
use crate::limits::{BOARD_QUESTIONS_MAX, LIST_BYTES_ENOUGH, OUTBOX_BYTES_PAUSE};
use crate::slice::TimeSlice;
use distrilock_engine::{Mode, View};
use distrilock_protocol::limits::LIST_LOCKS_MAX;
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::{Id, Listed, Listing, ModeWord, Peeked, Reply, SessionInfo};

/// A question to be answered with the boards of other daemons.
#[derive(Debug)]
pub(super) enum Question {
    /// Who holds a lock, which looks like this from here.
    Peek { id: Option<Id>, lock: LockName, view: View },
    /// Which locks there are after a name.
    List { id: Option<Id>, after: Option<LockName> },
}

impl Session {
    /// Answers a question, or keeps it until the boards are read.
    pub(super) fn look_everywhere(&mut self, question: Question, out: &mut Vec<u8>) {
        let may_wait = !self.hands_over && self.bye.is_none() && self.questions.len() < BOARD_QUESTIONS_MAX;
        if may_wait && self.table.await_boards(self.id) {
            self.questions.push_back(question);
        } else {
            self.answer_question(question, out);
        }
    }

    /// Answers what was asked, with the boards as they are known, as much as the time and the
    /// client allow: replies as long as lists must not add up to more than is kept for a client.
    pub(super) fn answer_questions(&mut self, slice: &mut TimeSlice, out: &mut Vec<u8>) {
        while self.answerable > 0 && self.end.is_none() && out.len() < OUTBOX_BYTES_PAUSE {
            self.answerable -= 1;
            let Some(question) = self.questions.pop_front() else { break };
            self.answer_question(question, out);
            if slice.is_over() {
                break;
            }
        }
        self.say_bye(out);
    }

    /// Answers everything that was asked.
    pub(super) fn answer_all_questions(&mut self, out: &mut Vec<u8>) {
        self.answerable = 0;
        for question in std::mem::take(&mut self.questions) {
            self.answer_question(question, out);
        }
    }

    fn answer_question(&mut self, question: Question, out: &mut Vec<u8>) {
        match question {
            Question::Peek { id, lock, view } => {
                let peeked = self.peeked_everywhere(&lock, &view);
                self.codec.send_v1(&Reply::yes(id.as_ref(), peeked), out);
            }
            Question::List { id, after } => {
                let listing = self.listing_everywhere(after.as_ref());
                self.codec.send_v1(&Reply::yes(id.as_ref(), listing), out);
            }
        }
    }

    fn peeked_everywhere(&self, name: &LockName, view: &View) -> Peeked {
        let peeked = self.peeked(name, view);
        let Some(other) = self.table.boards.elsewhere().lock(name) else { return peeked };
        let shares = shared_mode(view);
        // The file says whether anybody else holds the lock; a board may be a second old.
        let others = other.holders.into_iter().filter(|holder| match &shares {
            Some(mode) => holder.mode == *mode,
            None => view.contender,
        });
        Peeked {
            locked: peeked.locked,
            holders: peeked.holders.into_iter().chain(others).collect(),
            waiters_elsewhere: other.waiters_total.unwrap_or(other.waiters.len()),
            last_known: other.last_known,
            ..peeked
        }
    }

    fn listing_everywhere(&self, after: Option<&LockName>) -> Listing {
        let elsewhere = self.table.boards.elsewhere();
        let mut names = self.table.shards.names(after, LIST_LOCKS_MAX + 1);
        names.extend(elsewhere.names(after, LIST_LOCKS_MAX + 1));
        names.sort_unstable();
        names.dedup();
        let (mut locks, mut bytes) = (Vec::new(), 0);
        let mut rest = names.iter();
        while locks.len() < LIST_LOCKS_MAX && bytes < LIST_BYTES_ENOUGH {
            let Some(name) = rest.next() else { break };
            let view = self.table.shards.view(name);
            let here = view.as_ref().map(|view| (self.listed(name, view), shared_mode(view)));
            let listed = match (here, elsewhere.lock(name)) {
                (None, None) => continue,
                (Some((here, _)), None) => here,
                (None, Some(other)) => Listed { waiters_total: total(&other), ..other },
                (Some((here, shares)), Some(other)) => joined(here, shares.as_ref(), other),
            };
            bytes += listed.bytes();
            locks.push(listed);
        }
        Listing { locks, more: rest.next().is_some(), unlisted: elsewhere.unlisted }
    }

    /// What a refusal says of a lock that is held elsewhere.
    pub(super) fn busy_elsewhere(&self, name: &LockName) -> String {
        match self.table.boards.elsewhere().holder(name) {
            Some(SessionInfo { session, introduction, since_ms, node, .. }) => {
                let node = node.unwrap_or_default();
                match introduction.name {
                    Some(name) => {
                        format!("held by {name} (session {session} of the daemon at {node}) for {since_ms} ms")
                    }
                    None => format!("held by session {session} of the daemon at {node} for {since_ms} ms"),
                }
            }
            None => "held through another daemon or by another process".into(),
        }
    }
}

/// The mode in which sessions hold a lock here and others can hold it at the same time.
fn shared_mode(view: &View) -> Option<ModeWord> {
    let mode = view.holders.first()?.mode();
    (mode != Mode::Exclusive).then(|| ModeWord::from(mode))
}

fn total(lock: &Listed) -> Option<usize> {
    lock.waiters_total.filter(|total| *total > lock.waiters.len())
}

/// What is known here of a lock, and what others show of it. A lock that is held here exclusively
/// is held by nobody else: then the other's board is older than that.
fn joined(here: Listed, shares: Option<&ModeWord>, other: Listed) -> Listed {
    let waiting = |lock: &Listed| lock.waiters_total.unwrap_or(lock.waiters.len());
    let waiters_total = waiting(&here).saturating_add(waiting(&other));
    let is_held_here = !here.holders.is_empty();
    let others =
        other.holders.into_iter().filter(|holder| !is_held_here || shares.is_some_and(|mode| holder.mode == *mode));
    let joined = Listed {
        holders: here.holders.into_iter().chain(others).collect(),
        waiters: here.waiters.into_iter().chain(other.waiters).collect(),
        waiters_total: Some(waiters_total),
        mode: here.mode.or(other.mode),
        last_known: other.last_known,
        ..here
    };
    Listed { waiters_total: total(&joined), ..joined }
}
