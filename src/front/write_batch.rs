//! Bursts: a thread first reads every request that has come, then writes the replies. A reply written at once wakes its client,
//! which costs the thread more than the request itself, once for each; replies written one after the other find most clients'
//! thread awake. The end of a burst is when the runtime has nothing left to do and is about to look for new events.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// A burst ends when so many have read, though there be more: a thread that always has something to read writes, too.
const BURST_MAX: usize = 256;

thread_local! {
    static WAITING: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// Waits until the thread has read what there is to read.
pub(super) async fn end() {
    let mut over = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut over, true) {
            return Poll::Ready(());
        }
        let waiting = WAITING.with_borrow_mut(|waiting| {
            waiting.push(cx.waker().clone());
            waiting.len()
        });
        if waiting >= BURST_MAX {
            ended();
        }
        Poll::Pending
    })
    .await;
}

/// To be called by the runtime of a thread that serves connections when it is about to park: it does not, if this wakes a task.
pub fn ended() {
    WAITING.with_borrow_mut(|waiting| waiting.drain(..).for_each(Waker::wake));
}
