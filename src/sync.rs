//! One idiom for mutexes. A panic aborts the daemon (`panic = "abort"`), so a poisoned mutex can
//! only be met in tests.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, poisoned or not.
pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
