//! The task that drives a connection: bytes between the socket and the session, and the session's
//! clock.

use std::sync::Arc;

use crate::boottime::Alarm;
use crate::error::DisconnectedError;
use crate::link::{Link, Turn};
use crate::shared::Shared;

/// Ends the session when the task ends, even if its runtime drops it.
struct End<'a>(&'a Arc<Shared>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.with(|session, _| session.end(&DisconnectedError::Dropped));
    }
}

/// Drives the connection until its session has ended. Then the connection is closed, and the daemon
/// releases what is left.
pub(crate) async fn drive(shared: Arc<Shared>, mut link: Link, alarm: Alarm) {
    let _end = End(&shared);
    if let Err(why) = run(&shared, &mut link, &alarm).await {
        shared.with(|session, _| session.end(&why));
    }
}

async fn run(shared: &Arc<Shared>, link: &mut Link, alarm: &Alarm) -> Result<(), DisconnectedError> {
    loop {
        let next = shared.with(|session, now| {
            session.tick(now);
            let pushed = link.push(&mut session.outbox);
            let open = session.ended().is_none();
            pushed.map(|()| open.then(|| session.next_tick()))
        })?;
        let Some(next) = next else { return Ok(()) };
        let mut take = |message: &[u8]| shared.with(|session, now| session.receive(now, message));
        tokio::select! {
            () = shared.wake.notified() => {}
            rung = alarm.wait_until(next) => rung?,
            turn = link.turn(&mut take) => {
                if turn? == Turn::Closed {
                    return Err(DisconnectedError::Closed);
                }
            }
        }
    }
}
