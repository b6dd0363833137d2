//! This host's names.

use nix::unistd::gethostname;

/// The host's name; `unknown` if it cannot be read.
#[must_use]
pub fn host_name() -> String {
    gethostname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// All names of this host that can be found without asking a server: its name, the first part of
/// it, and what /etc/hosts lists next to it (hosts(5)).
#[must_use]
pub fn own_names() -> Vec<String> {
    gethostname().map_or_else(
        |_| Vec::new(),
        |name| names_beside(&name.to_string_lossy(), &std::fs::read_to_string("/etc/hosts").unwrap_or_default()),
    )
}

fn names_beside(name: &str, hosts: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    names.extend(name.split_once('.').map(|(first, _)| first.to_owned()));
    for line in hosts.lines() {
        let entry = line.split('#').next().unwrap_or_default();
        let listed: Vec<&str> = entry.split_ascii_whitespace().skip(1).collect();
        if listed.iter().any(|listed| listed.eq_ignore_ascii_case(name)) {
            names.extend(listed.into_iter().map(str::to_owned));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in the lines of /etc/hosts that have the host's name, and no others.
    #[test]
    fn names_in_hosts() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1\tOven.example oven # kitchen\n10.0.0.9 stove\n# 10.0.0.1 oven x\n";
        assert_eq!(names_beside("oven", hosts), ["oven", "Oven.example", "oven"]);
        assert_eq!(names_beside("oven.example", ""), ["oven.example", "oven"]);
    }
}
