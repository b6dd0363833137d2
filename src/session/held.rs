//! The names that a session holds.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::limits::FEW_NAMES_MAX;
use distrilock_protocol::name::LockName;

/// A set of names, in order. Most sessions hold one, for which a tree's node would have ten places
/// too many; many are a tree, so that no step depends on how many they are.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// Sorted.
    Few(Vec<LockName>),
    Many(BTreeSet<LockName>),
}

impl Default for Held {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Held {
    pub(super) fn contains(&self, name: &LockName) -> bool {
        match self {
            Self::Few(names) => names.binary_search(name).is_ok(),
            Self::Many(names) => names.contains(name),
        }
    }

    pub(super) fn insert(&mut self, name: LockName) {
        match self {
            Self::Few(names) => {
                let Err(place) = names.binary_search(&name) else { return };
                if names.len() < FEW_NAMES_MAX {
                    if names.capacity() == 0 {
                        names.reserve_exact(1);
                    }
                    names.insert(place, name);
                } else {
                    let names = std::mem::take(names).into_iter().chain([name]);
                    *self = Self::Many(names.collect());
                }
            }
            Self::Many(names) => drop(names.insert(name)),
        }
    }

    /// Returns whether it was there.
    pub(super) fn remove(&mut self, name: &LockName) -> bool {
        match self {
            Self::Few(names) => match names.binary_search(name) {
                Ok(place) => {
                    names.remove(place);
                    if names.is_empty() {
                        names.shrink_to(1);
                    }
                    true
                }
                Err(_) => false,
            },
            Self::Many(names) => {
                let was_there = names.remove(name);
                if names.len() <= FEW_NAMES_MAX / 2 {
                    *self = Self::Few(std::mem::take(names).into_iter().collect());
                }
                was_there
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(names) => names.len(),
            Self::Many(names) => names.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &LockName> {
        let (few, many) = match self {
            Self::Few(names) => (Some(names), None),
            Self::Many(names) => (None, Some(names)),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    /// The first name after this one, or the first of all.
    pub(super) fn next(&self, after: Option<&LockName>) -> Option<&LockName> {
        match self {
            Self::Few(names) => names.get(after.map_or(0, |after| names.partition_point(|name| name <= after))),
            Self::Many(names) => {
                let start = after.map_or(Bound::Unbounded, Bound::Excluded);
                names.range::<LockName, _>((start, Bound::Unbounded)).next()
            }
        }
    }

    /// All names, in order.
    pub(super) fn into_set(self) -> BTreeSet<LockName> {
        match self {
            Self::Few(names) => names.into_iter().collect(),
            Self::Many(names) => names,
        }
    }
}

impl Extend<LockName> for Held {
    fn extend<I: IntoIterator<Item = LockName>>(&mut self, names: I) {
        names.into_iter().for_each(|name| self.insert(name));
    }
}

impl FromIterator<LockName> for Held {
    fn from_iter<I: IntoIterator<Item = LockName>>(names: I) -> Self {
        let mut held = Self::default();
        held.extend(names);
        held
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It is a set, in order, whatever comes and goes.
        #[test]
        fn a_set(steps in proptest::collection::vec((0_u8..3, 0_u8..60), 0..200)) {
            let (mut held, mut expected) = (Held::default(), BTreeSet::new());
            for (comes, number) in steps {
                let name = LockName::parse(format!("n{number}").as_bytes()).expect("a name");
                if comes > 0 {
                    held.insert(name.clone());
                    expected.insert(name.clone());
                } else {
                    prop_assert_eq!(held.remove(&name), expected.remove(&name));
                }
                prop_assert!(held.iter().eq(expected.iter()));
                prop_assert_eq!((held.len(), held.is_empty()), (expected.len(), expected.is_empty()));
                prop_assert!(expected.iter().all(|name| held.contains(name)));
                prop_assert_eq!(held.next(None), expected.first());
                let after = expected.range::<LockName, _>((Bound::Excluded(&name), Bound::Unbounded)).next();
                prop_assert_eq!(held.next(Some(&name)), after);
            }
            prop_assert_eq!(held.into_set(), expected);
        }
    }
}
