//! Booted hosts: systemd is their first process, with the package installed, and they have a root
//! of their own on top of the machine's. They are containers in the network of a [`Host`], so the
//! NFS mounts of their systemd are a separate client to the server.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::hosts::{Host, sh};
use crate::report::Report;
use crate::support::eventually;

/// Units that the machine's Debian would start but a host of the lab does not need.
const MASKED: &[&str] = &[
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty.target",
    "ldconfig.service",
    "proc-sys-fs-binfmt_misc.automount",
    "rpc-gssd.service",
    "run-rpc_pipefs.mount",
    "systemd-firstboot.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-remount-fs.service",
    "systemd-resolved.service",
    "systemd-sysctl.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];

/// A host whose first process is systemd.
pub(crate) struct Booted {
    pub(crate) host: Host,
    /// Its layer over the machine's root, and the combination of both.
    base: PathBuf,
    container: Child,
    /// The machine's process id of its first process.
    first: u32,
}

impl Booted {
    /// Makes a host's root and boots it, without waiting. `hosts` is its /etc/hosts.
    pub(crate) fn start(host: Host, hosts: &str, report: &Report) -> Self {
        let base = PathBuf::from("/run/lab").join(format!("booted-{}", host.name));
        let root = base.join("root");
        for folder in ["upper", "work", "root"] {
            fs::create_dir_all(base.join(folder)).expect("memory is left");
        }
        let layers = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", base.display());
        sh(&format!(
            "mount -t overlay -o {layers} overlay {0} && rm -rf {0}/etc/systemd/system/*.wants {0}/srv/locks",
            root.display()
        ));
        let units = root.join("etc/systemd/system");
        for unit in MASKED {
            let _ = fs::remove_file(units.join(unit));
            symlink("/dev/null", units.join(unit)).expect("memory is left");
        }
        let [_, server] = host.addresses();
        let others: String = (0..host.number()).map(|n| format!("u another{n} -\n")).collect();
        fs::create_dir_all(root.join("etc/sysusers.d")).expect("memory is left");
        for (file, text) in [
            ("etc/hostname", format!("{}\n", host.name)),
            ("etc/machine-id", format!("{:032x}\n", host.number())),
            // The daemon's user has a different number on each host.
            ("etc/sysusers.d/another.conf", others),
            ("etc/hosts", format!("127.0.0.1 localhost {}\n{server} files.example.com\n{hosts}", host.name)),
        ] {
            fs::write(root.join(file), text).expect("memory is left");
        }
        for log in ["console", "journal"] {
            report.show_if_failed(base.join(log));
        }
        let container = contain(&host, &base);
        Self { host, base, container, first: 0 }
    }

    /// Waits until all enabled units have been started.
    pub(crate) fn wait_until_up(&mut self) {
        let container = self.container.id();
        eventually("the container has a first process", || {
            let children = fs::read_to_string(format!("/proc/{container}/task/{container}/children"));
            let last = children.unwrap_or_default().split_whitespace().next_back().and_then(|id| id.parse().ok());
            self.first = last.unwrap_or_default();
            self.first > 0 && self.path("/run/systemd/private").exists()
        });
        eventually("the host is up", || {
            let (_, state) = self.systemctl(&["is-system-running"]);
            ["running", "degraded"].contains(&state.trim())
        });
        // Containers get their own boot id by a mount over the kernel's, which a unit with its own
        // /proc does not see. Real hosts have one.
        let (status, text) = self.run("umount", &["/proc/sys/kernel/random/boot_id"]);
        assert_eq!(status, Some(0), "{text}");
    }

    /// Shuts the host down, and boots it again with the same root.
    pub(crate) fn reboot(&mut self) {
        self.keep_journal();
        let _ = self.systemctl(&["poweroff"]);
        let mut ended = false;
        eventually("the host goes down", || {
            ended |= self.container.try_wait().expect("it is our child").is_some();
            ended
        });
        self.container = contain(&self.host, &self.base);
        self.first = 0;
        self.wait_until_up();
    }

    /// A command inside the host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.first.to_string(), "-a", program]).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> (Option<i32>, String) {
        said(self.command(program).args(arguments).output().expect("nsenter is there"))
    }

    pub(crate) fn systemctl(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.run("systemctl", arguments)
    }

    pub(crate) fn is_active(&self, unit: &str) -> bool {
        self.systemctl(&["is-active", "--quiet", unit]).0 == Some(0)
    }

    /// The Unix socket of a node, as a path outside the host; the first node has no name.
    pub(crate) fn address(&self, node: &str) -> String {
        format!("unix:{}", self.path(&format!("/run/distrilock/{node}/distrilock.sock")).display())
    }

    /// A path on this host, as a path outside it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    /// The matching entries of the journal, which ends with the boot.
    pub(crate) fn journal(&self, matches: &[&str]) -> String {
        let options = ["--no-pager", "--quiet", "--output=short-monotonic"];
        self.run("journalctl", &[&options, matches].concat()).1
    }

    fn keep_journal(&self) {
        let file = File::options().append(true).create(true).open(self.base.join("journal")).expect("memory is left");
        let mut journal = self.command("journalctl");
        journal.args(["--no-pager", "--output=short-monotonic"]);
        let _ = journal.stdout(file).stderr(Stdio::null()).status();
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        if self.first > 0 {
            self.keep_journal();
        }
        // When its first process dies, everything in the container dies.
        let _ = self.container.kill();
        let _ = self.container.wait();
    }
}

/// Boots a root in the network of a host.
fn contain(host: &Host, base: &Path) -> Child {
    let group = Path::new("/sys/fs/cgroup").join(&host.name);
    fs::create_dir_all(&group).expect("cgroup2 is mounted");
    let console = File::options().append(true).create(true).open(base.join("console")).expect("memory is left");
    let script = "echo $$ >$0/cgroup.procs && exec systemd-nspawn --quiet --boot --register=no --keep-unit --console=pipe \
                  --resolv-conf=off --timezone=off --link-journal=no \"$@\"";
    Command::new("sh")
        .args(["-c", script, &group.display().to_string()])
        .arg(format!("--directory={}", base.join("root").display()))
        .arg(format!("--machine={}", host.name))
        .arg(format!("--network-namespace-path=/run/netns/{}", host.network()))
        .stdin(Stdio::null())
        .stdout(console.try_clone().expect("descriptors are left"))
        .stderr(console)
        .spawn()
        .expect("sh is there")
}

/// The exit status and the output.
pub(crate) fn said(output: Output) -> (Option<i32>, String) {
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}
