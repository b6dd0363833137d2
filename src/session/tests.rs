use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::limits::{BOARD_QUESTIONS_MAX, FEW_REQUESTS_MAX, OUTBOX_BYTES_PAUSE};
use crate::lock_table::Budgets;

/// A daemon's lock table over a directory of its own.
struct Table {
    table: Arc<LockTable>,
    _directory: tempfile::TempDir,
    _timers: tokio::runtime::Runtime,
}

impl Table {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let timers = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let table = LockTable::of_directory(directory.path(), timers.handle());
        Self { table, _directory: directory, _timers: timers }
    }

    fn session(&self) -> Client {
        let opened = self.table.mailboxes.open().unwrap();
        Client(Session::new(opened.id, Arc::clone(&self.table), opened.mailbox, Codec::stream()))
    }
}

/// A session, and what its client sees of it.
struct Client(Session);

impl Client {
    /// The lines that answer a request at once.
    fn ask(&mut self, request: &str) -> Vec<String> {
        let mut out = Vec::new();
        self.0.receive(format!("{request}\n").as_bytes(), &mut out).unwrap();
        lines(&out)
    }

    /// The lines that come of the notices in the mailbox.
    fn read(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        self.0.read_notices(&mut TimeSlice::endless(), &mut out);
        lines(&out)
    }
}

fn name(text: &str) -> LockName {
    LockName::parse(text.as_bytes()).unwrap()
}

fn lines(out: &[u8]) -> Vec<String> {
    std::str::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
}

/// While a session waits for the first of two locks, it is granted, and another lock of the session
/// comes into doubt. The second lock is free, so that its answer is there as soon as the session
/// asks for it: the client learns of the doubt first, which is older.
#[test]
fn an_older_notice_comes_before_a_newer_one() {
    let table = Table::new();
    let (mut holder, mut waiter) = (table.session(), table.session());
    assert_eq!(waiter.ask(r#"{"op":"acquire","lock":"x"}"#), [r#"{"ok":true,"lock":"x"}"#]);
    assert_eq!(holder.ask(r#"{"op":"acquire","lock":"a"}"#), [r#"{"ok":true,"lock":"a"}"#]);
    assert_eq!(waiter.ask(r#"{"op":"acquire","locks":["a","b"],"wait_ms":null}"#), [""; 0]);
    assert_eq!(holder.ask(r#"{"op":"release","lock":"a"}"#), [r#"{"ok":true,"lock":"a"}"#]);
    table.table.submit(&name("x"), Input::Suspect(20_000), Source::Daemon);
    let read = waiter.read();
    let of_x = read.iter().position(|line| line == r#"{"event":"suspect","lock":"x","valid_ms":20000}"#);
    let granted = read.iter().position(|line| line == r#"{"ok":true,"locks":[{"lock":"a"},{"lock":"b"}]}"#);
    assert!(of_x.is_some() && of_x < granted, "{read:?}");
}

/// The same, but the first lock is lost before the second one is asked for: the request is refused,
/// and not granted with a lock that is lost already.
#[test]
fn a_lost_part_is_not_granted() {
    let table = Table::new();
    let (mut holder, mut waiter) = (table.session(), table.session());
    assert_eq!(holder.ask(r#"{"op":"acquire","lock":"a"}"#), [r#"{"ok":true,"lock":"a"}"#]);
    assert_eq!(waiter.ask(r#"{"op":"acquire","locks":["a","b"],"wait_ms":null}"#), [""; 0]);
    assert_eq!(holder.ask(r#"{"op":"release","lock":"a"}"#), [r#"{"ok":true,"lock":"a"}"#]);
    table.table.submit(&name("a"), Input::Silence("gone"), Source::Daemon);
    let refusal = r#"{"ok":false,"error":"lost","message":"the lock a is lost: gone","lock":"a"}"#;
    assert_eq!(waiter.read(), [refusal]);
    assert_eq!(holder.ask(r#"{"op":"acquire","lock":"b"}"#), [r#"{"ok":true,"lock":"b"}"#], "it was released");
}

/// A request for several locks has been granted one, and its session has not read that yet: it
/// cannot release the lock all the same, which the request would then be granted without.
#[test]
fn a_part_that_was_just_granted_is_not_released() {
    let table = Table::new();
    let (mut holder, mut waiter) = (table.session(), table.session());
    for lock in ["a", "b"] {
        holder.ask(&format!(r#"{{"op":"acquire","lock":"{lock}"}}"#));
    }
    assert_eq!(waiter.ask(r#"{"op":"acquire","locks":["a","b"],"wait_ms":null}"#), [""; 0]);
    holder.ask(r#"{"op":"release","lock":"a"}"#);
    let refusal = r#"{"ok":false,"error":"not_held","message":"this session does not hold the lock a"}"#;
    assert_eq!(waiter.ask(r#"{"op":"release","lock":"a"}"#), [refusal]);
    holder.ask(r#"{"op":"release","lock":"b"}"#);
    assert_eq!(waiter.read(), [r#"{"ok":true,"locks":[{"lock":"a"},{"lock":"b"}]}"#]);
    assert_eq!(waiter.ask(r#"{"op":"verify","lock":"a"}"#), [r#"{"ok":true,"lock":"a"}"#]);
}

/// A session releases a lock that it held before it asked for several, of which it is one: the
/// request is not granted without it.
#[test]
fn a_part_that_was_held_before_is_released() {
    let table = Table::new();
    let (mut holder, mut waiter) = (table.session(), table.session());
    for release in [r#"{"op":"release","lock":"b"}"#, r#"{"op":"release","locks":["a","b"]}"#] {
        holder.ask(r#"{"op":"acquire","lock":"c"}"#);
        for lock in ["a", "b"] {
            waiter.ask(&format!(r#"{{"op":"acquire","lock":"{lock}"}}"#));
        }
        assert_eq!(waiter.ask(r#"{"id":1,"op":"acquire","locks":["a","b","c"],"wait_ms":null}"#), [""; 0]);
        let answers = waiter.ask(release);
        let refused = |answer: &String| answer.starts_with(r#"{"id":1,"ok":false,"error":"cancelled""#);
        assert_eq!(answers.iter().filter(|answer| refused(answer)).count(), 1, "{answers:?}");
        assert!(answers.iter().any(|answer| answer.starts_with(r#"{"ok":true"#)), "{answers:?}");
        holder.ask(r#"{"op":"release","lock":"c"}"#);
        assert_eq!(waiter.read(), [""; 0]);
        assert_eq!(holder.ask(r#"{"op":"acquire","lock":"b"}"#), [r#"{"ok":true,"lock":"b"}"#]);
        holder.ask(r#"{"op":"release","lock":"b"}"#);
        waiter.ask(r#"{"op":"release","lock":"a"}"#);
    }
}

/// A request for several locks is cancelled when it has just been granted one and would wait for
/// the next: it waits for nothing more.
#[test]
fn a_request_is_cancelled_between_its_parts() {
    let table = Table::new();
    let (mut holder, mut waiter) = (table.session(), table.session());
    for lock in ["a", "b"] {
        holder.ask(&format!(r#"{{"op":"acquire","lock":"{lock}"}}"#));
    }
    assert_eq!(waiter.ask(r#"{"id":1,"op":"acquire","locks":["a","b"],"wait_ms":null}"#), [""; 0]);
    holder.ask(r#"{"op":"release","lock":"a"}"#);
    let refusal = r#"{"id":1,"ok":false,"error":"cancelled","message":"the wait was cancelled","lock":"a"}"#;
    assert_eq!(waiter.ask(r#"{"op":"cancel","request":1}"#), [refusal, r#"{"ok":true,"cancelled":true}"#]);
    assert_eq!(holder.ask(r#"{"op":"acquire","lock":"a"}"#), [r#"{"ok":true,"lock":"a"}"#], "it was released");
    holder.ask(r#"{"op":"release","lock":"b"}"#);
    assert_eq!(waiter.read(), [""; 0]);
}

/// A session asks for the stamp of a lock again before it has an answer: that is refused, however
/// many other requests there are, so that stamps do not pile up. Those of another lock are no
/// matter.
#[test]
fn one_stamp_at_a_time() {
    let table = Table::new();
    let mut client = table.session();
    for lock in ["a", "b"] {
        client.ask(&format!(r#"{{"op":"acquire","lock":"{lock}"}}"#));
    }
    client.0.pend(&name("a"), Kind::Stamp, ReplyTo::V1(None), None);
    let refused = r#"{"ok":false,"error":"bad_request","message":"a request of this session already asks for the stamp of the lock a"}"#;
    for request in 0..2 * FEW_REQUESTS_MAX {
        assert_eq!(client.ask(r#"{"op":"stamp","lock":"a","age_ms":0}"#), [refused]);
        client.0.pend(&name(&format!("n{request}")), Kind::Stamp, ReplyTo::V1(None), None);
        client.0.asking.check(|lock| client.0.held.contains(lock));
    }
    let answer = client.ask(r#"{"op":"stamp","lock":"b"}"#);
    assert!(answer.is_empty() || answer == [r#"{"ok":true,"lock":"b"}"#], "{answer:?}");
}

/// What a client can ask for in the test below: names are few, so that requests meet.
fn requests() -> impl Strategy<Value = String> {
    let lock = || (0..6_u8).prop_map(|number| format!("n{number}"));
    let several = || {
        proptest::sample::subsequence((0..6_u8).collect::<Vec<_>>(), 2..5).prop_map(|numbers| {
            let locks: Vec<String> = numbers.iter().map(|number| format!("\"n{number}\"")).collect();
            locks.join(",")
        })
    };
    let wait =
        || prop_oneof![Just(""), Just(r#","wait_ms":null"#), Just(r#","wait_ms":0"#), Just(r#","wait_ms":9999"#)];
    let id = || (0..4_u8).prop_map(|id| if id == 0 { String::new() } else { format!(r#""id":{id},"#) });
    prop_oneof![
        4 => (id(), lock(), wait()).prop_map(|(id, lock, wait)| format!(r#"{{{id}"op":"acquire","lock":"{lock}"{wait}}}"#)),
        4 => (id(), several(), wait())
            .prop_map(|(id, locks, wait)| format!(r#"{{{id}"op":"acquire","locks":[{locks}]{wait}}}"#)),
        3 => (id(), lock()).prop_map(|(id, lock)| format!(r#"{{{id}"op":"release","lock":"{lock}"}}"#)),
        1 => (id(), several()).prop_map(|(id, locks)| format!(r#"{{{id}"op":"release","locks":[{locks}]}}"#)),
        2 => (0..4_u8).prop_map(|id| format!(r#"{{"op":"cancel","request":{id}}}"#)),
        1 => Just(String::new()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever two clients ask, in whatever order, the indexes of their sessions say what their
    /// requests say. An empty request stands for the end of a time that a wait has.
    #[test]
    fn indexes_agree(steps in proptest::collection::vec((any::<bool>(), requests()), 1..60)) {
        let table = Table::new();
        let mut clients = [table.session(), table.session()];
        for (which, request) in steps {
            let client = &mut clients[usize::from(which)];
            if request.is_empty() {
                client.0.expire(Instant::now() + Duration::from_secs(20), &mut TimeSlice::endless(), &mut Vec::new());
            } else {
                client.ask(&request);
            }
            for client in &mut clients {
                client.read();
                client.0.asking.check(|lock| client.0.held.contains(lock));
            }
            let beyond_one = |count: fn(&Session) -> usize| -> usize {
                clients.iter().map(|client| count(&client.0).saturating_sub(1)).sum()
            };
            let locks = beyond_one(|session| session.held.len() + session.asking.acquiring());
            prop_assert_eq!(table.table.budgets.locks.taken(), locks);
            prop_assert_eq!(table.table.budgets.waits.taken(), beyond_one(|session| session.asking.waits()));
        }
        for client in &mut clients {
            while !client.0.leave(&mut TimeSlice::begin()) {}
        }
        prop_assert_eq!(table.table.shards.count(), (0, 0), "everything was released");
        let Budgets { locks, waits, unanswered, .. } = &table.table.budgets;
        prop_assert_eq!((locks.taken(), waits.taken(), unanswered.taken()), (0, 0, 0), "everything was given back");
    }
}

/// A session that waits for much and holds much leaves in many pieces: another session, which waits
/// for one of its locks, has it in the end, and nothing is granted to the one that leaves.
#[test]
fn leaves_in_pieces() {
    let table = Table::new();
    let (mut holder, mut waiter, mut other) = (table.session(), table.session(), table.session());
    for number in 0..40 {
        holder.ask(&format!(r#"{{"op":"acquire","lock":"a{number}"}}"#));
        waiter.ask(&format!(r#"{{"op":"acquire","lock":"b{number}"}}"#));
        waiter.ask(&format!(r#"{{"op":"acquire","lock":"a{number}","wait_ms":null}}"#));
    }
    assert_eq!(other.ask(r#"{"op":"acquire","lock":"b39","wait_ms":null}"#), [""; 0]);
    let mut slice = TimeSlice::over();
    let mut pieces = 1;
    while !waiter.0.leave(&mut slice) {
        pieces += 1;
        // Meanwhile, what it waited for becomes free.
        if pieces <= 40 {
            holder.ask(&format!(r#"{{"op":"release","lock":"a{}"}}"#, 40 - pieces));
        }
    }
    assert!(pieces >= 80, "{pieces} pieces");
    assert_eq!(other.read(), [r#"{"ok":true,"lock":"b39"}"#]);
    assert_eq!(table.table.shards.count(), (2, 0), "one is the holder's, which was not released");
}

/// The same with a goodbye: it is answered once everything is released.
#[test]
fn says_goodbye_in_pieces() {
    let table = Table::new();
    let (mut holder, mut leaver) = (table.session(), table.session());
    for number in 0..40 {
        holder.ask(&format!(r#"{{"op":"acquire","lock":"a{number}"}}"#));
        leaver.ask(&format!(r#"{{"op":"acquire","lock":"b{number}"}}"#));
        leaver.ask(&format!(r#"{{"op":"acquire","lock":"a{number}","wait_ms":null}}"#));
    }
    let mut lines = Vec::new();
    leaver.0.begin_bye(None);
    let mut pieces = 0;
    while leaver.0.has_work() {
        assert!(!leaver.0.can_receive());
        let mut out = Vec::new();
        leaver.0.work(&mut TimeSlice::over(), &mut out);
        lines.extend(self::lines(&out));
        pieces += 1;
    }
    assert!(pieces >= 80, "{pieces} pieces");
    let cancelled = lines.iter().filter(|line| line.contains(r#""error":"cancelled""#)).count();
    assert_eq!((cancelled, lines.len(), lines.last().map(String::as_str)), (40, 41, Some(r#"{"ok":true}"#)));
    assert_eq!(leaver.0.ended(), Some(&End::Goodbye));
    assert_eq!(table.table.shards.count(), (40, 0));
}

/// Answers to questions about other daemons may be as long as lists: they come one after the other,
/// and only while the client reads, so that a session is not closed since it asked many at once. A
/// goodbye comes after them.
#[test]
fn questions_are_answered_in_pieces() {
    let table = Table::new();
    let mut asker = table.session();
    for id in 0..BOARD_QUESTIONS_MAX {
        let request = format!(r#"{{"id":{id},"op":"list","all":true}}"#);
        assert_eq!(asker.ask(&request), [""; 0]);
    }
    assert!(!asker.0.has_answers());
    table.table.boards.end(&table.table);
    assert_eq!(asker.read(), [""; 0]);
    assert_eq!(asker.ask(r#"{"id":"bye","op":"bye"}"#), [""; 0]);
    let mut full = vec![b'x'; OUTBOX_BYTES_PAUSE];
    asker.0.work(&mut TimeSlice::endless(), &mut full);
    assert_eq!(full.len(), OUTBOX_BYTES_PAUSE);
    for id in 0..BOARD_QUESTIONS_MAX {
        assert!(asker.0.has_answers() && asker.0.ended().is_none());
        let mut out = Vec::new();
        asker.0.work(&mut TimeSlice::over(), &mut out);
        assert!(lines(&out)[0].starts_with(&format!(r#"{{"id":{id},"ok":true"#)), "{out:?}");
    }
    assert_eq!((asker.0.has_answers(), asker.0.ended()), (false, Some(&End::Goodbye)));
}

/// Who is handed over is answered before.
#[test]
fn questions_are_answered_before_the_next_process() {
    let table = Table::new();
    let mut asker = table.session();
    for _ in 0..3 {
        assert_eq!(asker.ask(r#"{"op":"list","all":true}"#), [""; 0]);
    }
    table.table.mailboxes.hand_over_all();
    assert_eq!(asker.read().len(), 3);
    assert!(asker.0.hands_over() && asker.0.is_at_rest() && !asker.0.has_answers());
}
