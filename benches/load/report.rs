//! Medians and markdown.

use std::fmt;

/// A table in markdown.
pub(crate) struct Table {
    lines: Vec<String>,
}

impl Table {
    pub(crate) fn new(heads: &[&str]) -> Self {
        let rule = heads.iter().map(|head| if *head == "dialect" { "---" } else { "--:" });
        Self { lines: vec![format!("| {} |", heads.join(" | ")), format!("|{}|", rule.collect::<Vec<_>>().join("|"))] }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.lines.push(format!("| {} |", cells.join(" | ")));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

/// The median: of an even number of values, the mean of the two in the middle; NaN if there are no
/// values.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        None => f64::NAN,
        Some(upper) if values.len() % 2 == 1 => *upper,
        Some(upper) => f64::midpoint(values[middle - 1], *upper),
    }
}

/// A number with about three digits, or a dash if it could not be measured.
pub(crate) fn figure(value: f64) -> String {
    match value {
        _ if !value.is_finite() => "-".to_owned(),
        _ if value.abs() >= 100.0 => format!("{value:.0}"),
        _ if value.abs() >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A ratio with two decimals, or a dash if there was nothing to compare with.
pub(crate) fn ratio(value: f64) -> String {
    if value.is_finite() { format!("{value:.2}") } else { "-".to_owned() }
}
