//! Write batches: a thread first reads every request that has arrived, and then writes all replies.
//! A reply written at once wakes its client, once for each request, and that costs the thread more
//! than the request itself. Of replies written in a row, most find their client's thread awake. A
//! batch ends when the runtime has nothing left to do and is about to look for new events.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// A batch ends when this many connections wait for its end, so that a thread that always has
/// something to read writes, too.
const WAITING_MAX: usize = 256;

thread_local! {
    static WAITING: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// A connection's wait for the end of the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wait {
    /// It does not wait.
    #[default]
    Over,
    /// It is about to wait.
    Due,
    /// It waits; what wakes it next is the end.
    Begun,
}

impl Wait {
    /// Ready when the thread has read everything that has arrived.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        match self {
            Self::Over => Poll::Ready(()),
            Self::Begun => {
                *self = Self::Over;
                Poll::Ready(())
            }
            Self::Due => {
                *self = Self::Begun;
                let waiting = WAITING.with_borrow_mut(|waiting| {
                    waiting.push(cx.waker().clone());
                    waiting.len()
                });
                if waiting >= WAITING_MAX {
                    end();
                }
                Poll::Pending
            }
        }
    }
}

/// Waits until the thread has read everything that has arrived.
pub(super) async fn ended() {
    let mut wait = Wait::Due;
    poll_fn(|cx| wait.poll(cx)).await;
}

/// Ends the batch. The runtime of a thread that serves connections calls this before it parks; if a
/// task wakes, it does not park.
pub(super) fn end() {
    WAITING.with_borrow_mut(|waiting| waiting.drain(..).for_each(Waker::wake));
}
