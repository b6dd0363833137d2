//! The options of every verb that acquires: which locks, how, and how long to wait for them.

use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::command::status;
use crate::command::usage_error::UsageError;
use crate::command::values::{self, Names, SlotLease, ValueError};
use distrilock_protocol::limits::{HELLO_NOTE_BYTES_MAX, LOCKS_PER_REQUEST_MAX, SLOTS_MAX};

/// Which locks to acquire, how, and how long to wait for them.
#[derive(Args, Clone, Debug)]
pub(in crate::command) struct AcquireOptions {
    /// Take the lock exclusively; this is the default
    #[arg(short = 'x', short_alias = 'e', long, conflicts_with = "shared")]
    exclusive: bool,

    /// Share the lock with other shared holders
    #[arg(short, long)]
    pub(in crate::command) shared: bool,

    /// Do not wait; fail if the lock is not free
    #[arg(short, long = "nonblock", visible_aliases = ["nb", "nonblocking"], conflicts_with = "wait")]
    pub(in crate::command) nonblock: bool,

    /// Wait for at most this time: seconds, or a number with a unit, as in 500ms, 10s, 5m, 2h; 0 is
    /// the same as -n
    #[arg(short, long, visible_alias = "timeout", value_name = "TIME", value_parser = values::time)]
    pub(in crate::command) wait: Option<Duration>,

    /// Exit status if the lock cannot be acquired in time. Default: 1
    #[arg(short = 'E', long, value_name = "STATUS")]
    pub(in crate::command) conflict_exit_code: Option<u8>,

    /// Take one of the N slots of NAME; everyone who uses the name must agree on N
    #[arg(short = 'N', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(SLOTS_MAX)))]
    pub(in crate::command) slots: Option<u16>,

    /// Also take COUNT of the TOTAL slots of RES; repeatable. All locks are taken together or not
    /// at all
    #[arg(long = "lease", value_name = "RES=COUNT:TOTAL")]
    pub(in crate::command) leases: Vec<SlotLease>,

    /// Ask for a fence: a per-name number that only increases (a fencing token)
    #[arg(long)]
    pub(in crate::command) fence: bool,

    /// A note that others see next to the name of this session
    #[arg(long, value_name = "TEXT", value_parser = note)]
    pub(in crate::command) note: Option<String>,

    /// Say on stderr how long it took to get the lock, or why it could not be acquired
    #[arg(long)]
    pub(in crate::command) verbose: bool,

    /// The names of the locks, separated by commas; all are taken or none. A name with a slash in
    /// it is a path, as in flock(1), and is turned into a lock name
    #[arg(value_name = "NAME[,NAME...]", value_parser = names())]
    pub(in crate::command) names: Names,
}

impl AcquireOptions {
    /// Whether the request may wait.
    pub(in crate::command) fn waits(&self) -> bool {
        !self.nonblock && self.wait != Some(Duration::ZERO)
    }

    /// The exit status if the lock cannot be acquired.
    pub(in crate::command) fn busy_status(&self) -> u8 {
        self.conflict_exit_code.unwrap_or(status::BUSY)
    }

    /// Checks what clap cannot.
    pub(in crate::command) fn check(&self) -> Result<(), UsageError> {
        let names = &self.names;
        let leased = self.leases.iter().map(|lease| &lease.name);
        let all: Vec<_> = names.0.iter().chain(leased).collect();
        if let Some(twice) = all.iter().enumerate().find_map(|(n, name)| all[..n].contains(name).then_some(*name)) {
            return Err(ValueError::Twice(twice.clone()).into());
        }
        if all.len() > LOCKS_PER_REQUEST_MAX {
            return Err(ValueError::TooMany(all.len()).into());
        }
        if self.slots.is_some() && names.0.len() > 1 {
            return Err(UsageError::SlotsOfSeveral);
        }
        if self.shared && (self.slots.is_some() || !self.leases.is_empty()) {
            return Err(UsageError::SharedSlots);
        }
        Ok(())
    }
}

fn note(text: &str) -> Result<String, UsageError> {
    if text.len() > HELLO_NOTE_BYTES_MAX || text.contains(char::is_control) {
        return Err(UsageError::Note);
    }
    Ok(text.to_owned())
}

/// Parses `NAME[,NAME...]`.
pub(super) fn names() -> impl TypedValueParser<Value = Names> {
    OsStringValueParser::new().try_map(|text| Names::parse(&text))
}
