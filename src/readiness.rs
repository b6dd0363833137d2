//! Waits for descriptors of kinds that tokio has no type for, as the client library does.

pub use distrilock_client::readiness::watched;
