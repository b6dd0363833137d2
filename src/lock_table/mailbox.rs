//! Mailboxes: how one session's task hands another session an answer. A letter waits in the mailbox until the session's own task
//! takes it out and writes it, so that nothing but that task touches its socket.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use distrilock_engine::limits::SHARDS;
use distrilock_engine::{Answer, RequestId, SessionId};
use distrilock_protocol::name::LockName;
use distrilock_protocol::v1::Introduction;

/// What a session is told by others.
#[derive(Debug)]
pub enum Letter {
    /// The engine answers a request.
    Answer {
        /// The name that it was about.
        name: LockName,
        /// The request.
        request: RequestId,
        /// The answer.
        answer: Answer,
    },
    /// A lock that the session held is lost.
    Lost {
        /// Which.
        name: LockName,
        /// Why.
        reason: &'static str,
    },
    /// A lock that the session holds is in doubt, or no more.
    Doubt {
        /// Which.
        name: LockName,
        /// For how many milliseconds it is surely held; `None`: the doubt is over.
        valid_ms: Option<u64>,
    },
    /// The next process of the daemon is to go on with the session.
    HandOver,
    /// The daemon stops.
    Stop,
}

/// One session's mailbox.
#[derive(Debug, Default)]
pub struct Mailbox {
    post: Mutex<Post>,
}

#[derive(Debug, Default)]
struct Post {
    letters: Vec<Letter>,
    waker: Option<Waker>,
    introduction: Option<Box<Introduction>>,
}

impl Mailbox {
    fn post(&self) -> MutexGuard<'_, Post> {
        locked(&self.post)
    }

    /// Drops a letter in, for a session that is about to look.
    pub(crate) fn leave(&self, letter: Letter) {
        let mut post = self.post();
        if post.letters.capacity() == 0 {
            post.letters.reserve_exact(1);
        }
        post.letters.push(letter);
    }

    /// Takes the letters out, in their order. The mailbox keeps room for one.
    pub fn take(&self, into: &mut Vec<Letter>) {
        let mut post = self.post();
        into.append(&mut post.letters);
        post.letters.shrink_to(1);
    }

    /// Ready when there are letters.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut post = self.post();
        if !post.letters.is_empty() {
            return Poll::Ready(());
        }
        match &mut post.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// What the session has said of itself.
    #[must_use]
    pub fn introduction(&self) -> Option<Box<Introduction>> {
        self.post().introduction.clone()
    }

    /// Whether there are letters.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.post().letters.is_empty()
    }

    /// Keeps what the session says of itself.
    pub fn introduce(&self, introduction: Box<Introduction>) {
        self.post().introduction = Some(introduction);
    }
}

/// The mailboxes of all sessions.
#[derive(Debug)]
pub struct Mailboxes {
    parts: [Mutex<HashMap<u64, Arc<Mailbox>>>; SHARDS],
    next: AtomicU64,
    open: AtomicUsize,
    open_max: usize,
    emptied: Notify,
    stopping: AtomicBool,
    handing_over: AtomicBool,
}

/// There are as many sessions as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this daemon serves {sessions_max} sessions at once and has them; try again later, or raise --sessions")]
pub struct TooMany {
    /// The limit.
    pub sessions_max: usize,
}

impl Mailboxes {
    pub(crate) fn new(open_max: usize) -> Self {
        Self {
            parts: std::array::from_fn(|_| Mutex::default()),
            next: AtomicU64::new(1),
            open: AtomicUsize::new(0),
            open_max,
            emptied: Notify::new(),
            stopping: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
        }
    }

    /// A mailbox for a new session.
    ///
    /// # Errors
    /// If there are as many sessions as there may be.
    pub fn open(&self) -> Result<(SessionId, Arc<Mailbox>), TooMany> {
        if self.open.fetch_add(1, Ordering::SeqCst) >= self.open_max {
            self.leave();
            return Err(TooMany { sessions_max: self.open_max });
        }
        let session = SessionId(self.next.fetch_add(1, Ordering::Relaxed));
        let mailbox: Arc<Mailbox> = Arc::default();
        self.part(session).insert(session.0, Arc::clone(&mailbox));
        if self.stopping.load(Ordering::SeqCst) {
            mailbox.leave(Letter::Stop);
        }
        if self.handing_over.load(Ordering::SeqCst) {
            mailbox.leave(Letter::HandOver);
        }
        Ok((session, mailbox))
    }

    /// The mailbox of a session that the process before has opened; there may be more of them than new ones would be let in.
    #[must_use]
    pub fn reopen(&self, session: SessionId, introduction: Option<Box<Introduction>>) -> Arc<Mailbox> {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.next.fetch_max(session.0 + 1, Ordering::Relaxed);
        let mailbox: Arc<Mailbox> = Arc::default();
        mailbox.post().introduction = introduction;
        self.part(session).insert(session.0, Arc::clone(&mailbox));
        mailbox
    }

    /// Whether the session lives.
    #[must_use]
    pub fn is_open(&self, session: SessionId) -> bool {
        self.part(session).contains_key(&session.0)
    }

    /// The number of the session that is opened next.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Sessions from this number on are new.
    pub(crate) fn begin_at(&self, next: u64) {
        self.next.fetch_max(next, Ordering::Relaxed);
    }

    /// Whether a session more may be opened: asked before a handshake, whose end opens it.
    ///
    /// # Errors
    /// If there are as many sessions as there may be.
    pub fn room(&self) -> Result<(), TooMany> {
        if self.count() < self.open_max { Ok(()) } else { Err(TooMany { sessions_max: self.open_max }) }
    }

    /// The session has ended.
    pub fn close(&self, session: SessionId) {
        if self.part(session).remove(&session.0).is_some() {
            self.leave();
        }
    }

    fn leave(&self) {
        if self.open.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.emptied.notify_waiters();
        }
    }

    /// How many sessions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Drops a letter into a session's mailbox; a session that has ended needs none. The waker, if there is one, is to be woken.
    pub(crate) fn post(&self, session: SessionId, letter: Letter) -> Option<Waker> {
        let mailbox = self.part(session).get(&session.0).cloned();
        mailbox.and_then(|mailbox| deliver(&mailbox, letter))
    }

    /// Tells every session that the daemon stops, those too that are about to begin.
    pub(crate) fn stop_all(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.tell_all(|| Letter::Stop);
    }

    /// Tells every session that the next process goes on with it, those too that are about to begin.
    pub(crate) fn hand_over_all(&self) {
        self.handing_over.store(true, Ordering::SeqCst);
        self.tell_all(|| Letter::HandOver);
    }

    fn tell_all(&self, letter: fn() -> Letter) {
        for part in &self.parts {
            let mailboxes: Vec<_> = locked(part).values().cloned().collect();
            mailboxes.iter().filter_map(|mailbox| deliver(mailbox, letter())).for_each(Waker::wake);
        }
    }

    /// Waits until there is no session.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// What a session said of itself.
    #[must_use]
    pub fn introduction(&self, session: SessionId) -> Introduction {
        let mailbox = self.part(session).get(&session.0).cloned();
        let introduction = mailbox.and_then(|mailbox| mailbox.post().introduction.clone());
        introduction.map(|introduction| *introduction).unwrap_or_default()
    }

    fn part(&self, session: SessionId) -> MutexGuard<'_, HashMap<u64, Arc<Mailbox>>> {
        let places = SHARDS as u64;
        locked(&self.parts[usize::try_from(session.0 % places).expect("there are few parts")])
    }
}

fn deliver(mailbox: &Mailbox, letter: Letter) -> Option<Waker> {
    let mut post = mailbox.post();
    post.letters.push(letter);
    post.waker.take()
}

/// A panic aborts the daemon, so that a poisoned mutex is never met outside of tests.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
