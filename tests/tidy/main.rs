//! The house rules that a compiler does not check: which module may know what, what comments and
//! modules look like, and that ids, flags and versions have their counterparts in the catalog, the
//! documentation and the changelog.
//!
//! `cargo test --test tidy -- --nocapture` also prints what is long. That fails nothing: what
//! belongs together stays together.

mod counterparts;
mod direction;
mod graph;
mod shape;
mod sources;
