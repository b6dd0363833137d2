//! `distrilock verify`: whether the lock under which this process runs is still held, and real, by
//! the very session that it was granted to. That session belongs to the guard of the surrounding
//! `distrilock run`, so the guard is asked.

use std::env;

use super::environment::{DESCRIPTOR, HELD, LOCK};
use super::error::CommandError;
use super::guard_socket;
use super::options::VerifyOptions;
use super::output;
use super::verify_error::{AskGuardError, NotHeldError};

/// Says nothing if the locks are real.
pub(super) fn main(options: &VerifyOptions) -> Result<u8, CommandError> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    match variable(HELD).as_deref() {
        None => return Err(NotHeldError::NoRun.into()),
        Some("0") => return Err(NotHeldError::RunAnyway.into()),
        Some(_) => {}
    }
    let held = variable(LOCK).unwrap_or_default();
    let mut wanted = options.names.iter().flat_map(|names| &names.0);
    if let Some(name) = wanted.find(|name| !held.split(',').any(|one| one == name.as_str())) {
        return Err(NotHeldError::OtherName { name: name.to_string(), held }.into());
    }
    let address = match (variable(guard_socket::VARIABLE), variable(DESCRIPTOR)) {
        (Some(address), _) => address,
        (None, Some(number)) => return Err(AskGuardError::NoFork(number).into()),
        (None, None) => return Err(AskGuardError::Unset.into()),
    };
    let verdict = guard_socket::ask(&address)?;
    verdict.message.lines().for_each(|line| output::message(&output::escaped(line)));
    Ok(verdict.status)
}
