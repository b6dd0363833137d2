//! `distrilock history`: who held which lock, from when to when, and how it ended, as the daemons'
//! events in the journal tell it. journalctl(1) reads the journal; `event` understands its JSON,
//! and `rows` makes a hold of a grant and its end.

mod event;
mod rows;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use super::error::CommandError;
use super::options::HistoryOptions;
use super::output::{columns, duration, escaped, json_line, message, print};
use super::status;
use event::{Event, FIELDS, IDS};
use rows::{ROWS_MAX, Row, Rows};

/// Bytes of a line of journalctl. It replaces a field beyond 4096 bytes by `null`, so that a line
/// with all our fields is shorter.
const LINE_BYTES_MAX: u64 = 1 << 20;

const HEADINGS: [&str; 7] = ["LOCK", "HOLDER", "FROM", "TO", "HELD", "WAITED", "ENDED"];

/// Reads the journal, and prints what it has.
pub(super) fn main(options: &HistoryOptions) -> Result<u8, CommandError> {
    let mut child = journalctl(options).spawn().map_err(CommandError::NoJournal)?;
    let mut rows = Rows::new(&options.names, &options.unit);
    let mut stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
    let mut line = Vec::new();
    let read = loop {
        line.clear();
        match stdout.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) => break Ok(()),
            Ok(_) => {
                if let Some(event) = Event::parse(&line) {
                    rows.add(event);
                }
            }
            Err(error) => break Err(CommandError::system("read from journalctl")(error)),
        }
    };
    // If reading failed, it ends when it writes on.
    drop(stdout);
    let ended = child.wait().map_err(CommandError::system("wait for journalctl"))?;
    read?;
    let found = rows.finish();
    print(&if options.json { to_json(&found.rows) } else { table(&found.rows, &TimeZone::system()) })?;
    if found.too_many > 0 {
        message(&format!("only the last {ROWS_MAX} are shown; ask for less with NAME, --since or --until"));
    }
    if found.missed > 0 {
        message(&format!("{} events are missing, since there were more in a minute than a daemon logs", found.missed));
    }
    if let Some(unit) = found.stranger {
        message(&format!(
            "left out {} events that no unit of distrilock has logged, but for example {}; -u UNIT shows them",
            found.strangers,
            escaped(if unit.is_empty() { "a process without a unit" } else { &unit })
        ));
    }
    if ended.success() { Ok(status::DONE) } else { Err(CommandError::Journal(ended)) }
}

/// The command that reads the journal. What it has to say on stderr is for the user.
fn journalctl(options: &HistoryOptions) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--output=json", "--no-pager"]).arg(format!("--output-fields={}", FIELDS.join(",")));
    let texts = [("--since", &options.since), ("--until", &options.until), ("--machine", &options.machine)];
    for (option, text) in texts.into_iter().filter_map(|(option, text)| Some((option, text.as_ref()?))) {
        command.arg(format!("{option}={text}"));
    }
    if let Some(directory) = &options.directory {
        command.arg("--directory").arg(directory);
    }
    for file in &options.file {
        command.arg("--file").arg(file);
    }
    // Matches of one field are alternatives.
    command.args(IDS.map(|id| format!("MESSAGE_ID={id}")));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A time in UTC, for programs.
fn exact(us: i64) -> Option<String> {
    Some(Timestamp::from_microsecond(us).ok()?.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

fn to_json(rows: &VecDeque<Row>) -> String {
    let objects = rows.iter().map(|row| {
        let kind = if row.is_hold { "held" } else { "waited" };
        json_line(&json!({
            "lock": row.lock, "what": kind, "holder": row.holder, "peer": row.peer, "session": row.session,
            "mode": row.mode, "unit": row.unit, "host": row.host, "from": row.from_us.and_then(exact),
            "to": row.to_us.and_then(exact), "held_ms": row.held_ms, "waited_ms": row.waited_ms, "ended": row.ended,
        }))
    });
    objects.collect()
}

fn table(rows: &VecDeque<Row>, zone: &TimeZone) -> String {
    let time = |us: Option<i64>| {
        let stamp = us.and_then(|us| Timestamp::from_microsecond(us).ok());
        stamp.map_or("-".to_owned(), |at| at.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string())
    };
    let span = |ms: Option<u64>| ms.map_or("-".to_owned(), duration);
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| {
        let ended = match (&row.ended, row.is_hold) {
            (Some(ended), true) => escaped(ended),
            (Some(ended), false) => format!("not granted: {}", escaped(ended)),
            (None, _) => "no end recorded".to_owned(),
        };
        let (from, to) = (time(row.from_us), time(row.to_us));
        [escaped(&row.lock), escaped(&row.holder), from, to, span(row.held_ms), span(row.waited_ms), ended]
    }));
    columns(&lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded lines, with a text that would act on a terminal: a row for each hold, and what is
    /// printed acts on none.
    #[test]
    fn what_is_printed() {
        let mut rows = Rows::new(&[], &[]);
        for line in include_str!("../../../tests/command/history.json").lines() {
            if let Some(event) = Event::parse(line.as_bytes()) {
                rows.add(event);
            }
        }
        let found = rows.finish();
        assert_eq!(
            table(&found.rows, &TimeZone::UTC),
            "LOCK     HOLDER                         FROM                 TO                   HELD         WAITED  ENDED\n\
             nightly  backup@db1, pid 4711, pg_dump  2026-11-28 03:00:00  2026-11-28 03:12:30  12 min 30 s  0 s     released\n\
             nightly  ci@web2                        -                    2026-11-28 03:12:31  -            5 s     not granted: timed out\n\
             nightly  a\\u{1b}[2Jb\u{fffd}                   2026-11-28 03:12:30  2026-11-28 03:12:32  2 s          1 s     lost: the file was deleted\n\
             gpu      127.0.0.1:5                    2026-11-28 03:13:00  -                    -            2 s     no end recorded\n"
        );
        let json = to_json(&found.rows);
        let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
        assert_eq!(first["from"], "2026-11-28T03:00:00.000Z");
        assert_eq!(first["to"], "2026-11-28T03:12:30.000Z");
        assert_eq!(first["ended"], "released");
        assert!(!json.contains('\u{1b}') && json.contains("\\u001b"));
        assert_eq!((found.missed, found.strangers, found.stranger.as_deref()), (7, 1, Some("session-3.scope")));
    }
}
