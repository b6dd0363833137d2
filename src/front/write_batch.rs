//! Write batches: a thread first reads every request that has arrived, and then writes all replies.
//! A reply written at once wakes its client, once for each request, and that costs the thread more
//! than the request itself. Of replies written in a row, most find their client's thread awake. A
//! batch ends when the runtime has nothing left to do and is about to look for new events.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// A batch ends when this many connections wait for its end, so that a thread that always has
/// something to read writes, too.
const WAITING_MAX: usize = 256;

thread_local! {
    static WAITING: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// Waits until the thread has read everything that has arrived.
pub(super) async fn ended() {
    let mut is_over = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_over, true) {
            return Poll::Ready(());
        }
        let waiting = WAITING.with_borrow_mut(|waiting| {
            waiting.push(cx.waker().clone());
            waiting.len()
        });
        if waiting >= WAITING_MAX {
            end();
        }
        Poll::Pending
    })
    .await;
}

/// Ends the batch. The runtime of a thread that serves connections calls this before it parks; if a
/// task wakes, it does not park.
pub(super) fn end() {
    WAITING.with_borrow_mut(|waiting| waiting.drain(..).for_each(Waker::wake));
}
