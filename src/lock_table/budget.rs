//! [`Budget`]: how much of something there is for all together, be they sessions or other daemons.
//! Nobody's part of it is larger than what is left: one alone may have half of it, ten that want
//! more than there is have an eleventh each, and an eleventh remains for those who come next. So
//! nobody can keep the others from what little they need.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How much there is of something, and how much of it is taken.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    taken: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, taken: AtomicUsize::new(0) }
    }

    /// Whether somebody who has taken `own` of it may take `more`.
    #[must_use]
    pub(crate) fn admits(&self, own: usize, more: usize) -> bool {
        own.saturating_add(more) <= self.most.saturating_sub(self.taken.load(Ordering::Relaxed))
    }

    /// How much somebody may take who has taken `own` of it.
    #[must_use]
    pub(crate) fn room(&self, own: usize) -> usize {
        self.most.saturating_sub(self.taken.load(Ordering::Relaxed)).saturating_sub(own)
    }

    /// Somebody who had taken `before` of it has `now`.
    pub(crate) fn change(&self, before: usize, now: usize) {
        if now > before {
            self.taken.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            self.taken.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// How much is taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as much as somebody may have.
    fn fill(budget: &Budget) -> usize {
        (0..).find(|own| !budget.admits(*own, 1) || (budget.change(*own, own + 1), false).1).expect("it is bounded")
    }

    /// One has half of it. The more there are, the less each of them has, and something is always
    /// left for the next one.
    #[test]
    fn nobody_takes_it_all() {
        let budget = Budget::new(1000);
        let parts: Vec<usize> = (0..5).map(|_| fill(&budget)).collect();
        assert_eq!(parts, [500, 250, 125, 63, 31]);
        assert_eq!(budget.taken(), 969);
        // The first one has more than its part by now: it gives some back before it gets any.
        assert!(!budget.admits(500, 1));
        budget.change(500, 100);
        assert!(budget.admits(100, 1));
        assert!(!budget.admits(100, usize::MAX));
        assert!(budget.admits(100, budget.room(100)) && !budget.admits(100, budget.room(100) + 1));
    }

    /// Those who want the same at the same time end up with the same.
    #[test]
    fn equals_have_equal_parts() {
        let budget = Budget::new(1100);
        let mut parts = [0; 10];
        for _ in 0..1000 {
            for part in &mut parts {
                if budget.admits(*part, 1) {
                    budget.change(*part, *part + 1);
                    *part += 1;
                }
            }
        }
        assert_eq!(parts, [100; 10]);
    }
}
