//! The guest's side of the network: an NFS server in the first network namespace, and hosts that
//! are namespaces of their own (network, host name, mounts), each a separate client to the server.
//! A link is cut by dropping every packet at both ends.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use distrilock::timing::Timing;

use crate::machine::{COMMAND, Machine, Suite};
use crate::report::Report;
use crate::support::{PATIENCE, V1, eventually};

/// The server's lease and its grace period, in seconds.
pub(crate) const LEASE_SECONDS: u64 = 10;

/// The times that daemons derive from the lease.
pub(crate) fn timing() -> Timing {
    Timing::of(Duration::from_secs(LEASE_SECONDS), None, None, Duration::from_secs(45))
}

/// IFF_MULTICAST and IFF_BROADCAST (netdevice(7)), without and with IFF_UP.
const LINK_DOWN: &str = "0x1002";
const LINK_UP: &str = "0x1003";

const SCRATCH: &str = "/run/lab";

/// A version of NFS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V40,
    V41,
    V42,
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let all = [Self::V40, Self::V41, Self::V42];
        all.into_iter().find(|version| version.to_string() == text).ok_or(())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V40 => "4.0",
            Self::V41 => "4.1",
            Self::V42 => "4.2",
        })
    }
}

/// Runs a line of shell that must succeed.
#[track_caller]
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh is there");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The NFS server.
pub(crate) struct Server {
    pub(crate) suite: Suite,
    pub(crate) version: Version,
    hosts: AtomicU32,
}

impl Server {
    pub(crate) fn start(Machine { suite, version }: Machine) -> Self {
        sh("modprobe nfsd; modprobe nfsv4; modprobe nfsv3; modprobe veth; modprobe sch_netem
            mkdir -p /export /run/rpc_pipefs /var/lib/nfs/nfsdcld /var/lib/nfs/v4recovery /run/lab
            chmod 1777 /export /run/lab
            mount -t nfsd nfsd /proc/fs/nfsd
            mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
            echo '/export *(rw,sync,no_root_squash,no_subtree_check,insecure)' > /etc/exports
            rpcbind
            nfsdcld
            exportfs -ra
            rpc.mountd");
        let server = Self { suite, version, hosts: AtomicU32::new(0) };
        server.up();
        server
    }

    pub(crate) fn up(&self) {
        sh(&format!("rpc.nfsd -L {LEASE_SECONDS} -G {LEASE_SECONDS} 8"));
    }

    pub(crate) fn down(&self) {
        sh("rpc.nfsd 0");
    }

    /// A folder of the export, with a host for each name that mounts it at /mnt.
    pub(crate) fn hosts<const N: usize>(&self, folder: &str, names: [impl AsRef<str>; N]) -> [Host; N] {
        self.folder(folder, "");
        names.map(|name| {
            let host = self.host(name.as_ref());
            host.mount(folder, self.version, "hard").expect("a healthy mount");
            host
        })
    }

    /// A folder of the export; if it has options, it is exported separately.
    pub(crate) fn folder(&self, name: &str, options: &str) {
        let path = PathBuf::from(format!("/export/{name}"));
        fs::create_dir(&path).expect("a fresh folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).expect("our own folder");
        if !options.is_empty() {
            // The server looks for a separate export only where something is mounted.
            sh(&format!("mount --bind {0} {0}", path.display()));
            sh(&format!("exportfs -o rw,sync,no_subtree_check,insecure,{options} '*:/export/{name}'"));
        }
    }

    /// A host with its own network and name.
    pub(crate) fn host(&self, name: &str) -> Host {
        Host::start(name, self.hosts.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The server's locks on a file of the export, as (mode, start, end).
    pub(crate) fn locks(&self, inode: u64) -> Vec<(String, u64, Option<u64>)> {
        let table = fs::read_to_string("/proc/locks").expect("proc is mounted");
        // "1: POSIX ADVISORY WRITE 1234 fe:00:5678 0 EOF". The clients' own records have other
        // devices, and OFDLCK.
        let suffix = format!(":{inode}");
        let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = lines.filter(|words| words.len() == 8 && words[1] == "POSIX" && words[5].ends_with(&suffix));
        ours.map(|words| (words[3].to_owned(), words[6].parse().unwrap_or(0), words[7].parse().ok())).collect()
    }

    /// The files of a folder of the export that a host has open according to the server, as paths
    /// in that folder.
    pub(crate) fn opened(&self, folder: &str) -> Vec<String> {
        states(folder, "open")
    }

    /// The files of a folder of the export for which the server has granted a delegation.
    pub(crate) fn delegated(&self, folder: &str) -> Vec<String> {
        states(folder, "deleg")
    }

    /// Whether the server has an exclusive lock that begins at 0, on the file of a lock.
    pub(crate) fn has_lock(&self, folder: &str, lock: &str) -> bool {
        self.has_lock_on(Path::new(&format!("/export/{folder}/{lock}.lck")))
    }

    pub(crate) fn has_lock_on(&self, file: &Path) -> bool {
        let Ok(file) = fs::metadata(file) else { return false };
        self.locks(file.ino()).iter().any(|(mode, start, _)| mode == "WRITE" && *start == 0)
    }
}

/// The files of a folder that have a state of this kind in the server's lists. It has one list for
/// each client, with lines such as
/// `- 0x...: { type: deleg, access: w, superblock: "fe:00:2885", filename: ".distrilock/gate" }`.
/// The path is shortened, so the inode says which file it is.
fn states(folder: &str, kind: &str) -> Vec<String> {
    let clients = fs::read_dir("/proc/fs/nfsd/clients").expect("the server runs");
    // A client may go away meanwhile.
    let lists = clients.filter_map(|client| fs::read_to_string(client.ok()?.path().join("states")).ok());
    let text: String = lists.collect();
    let kind = format!("type: {kind},");
    let lines = text.lines().filter(|line| line.contains(&kind));
    let inodes: HashSet<u64> = lines
        .filter_map(|line| line.split_once("superblock: \"")?.1.split('"').next()?.rsplit(':').next()?.parse().ok())
        .collect();
    let root = PathBuf::from(format!("/export/{folder}"));
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).collect::<Vec<_>>();
    let files = entries(&root).into_iter().chain(entries(&root.join(".distrilock")));
    let found = files.filter(|file| file.metadata().is_ok_and(|metadata| inodes.contains(&metadata.ino())));
    let mut names: Vec<String> = found
        .map(|file| file.path().strip_prefix(&root).expect("it lies in the folder").display().to_string())
        .collect();
    names.sort();
    names
}

/// A host: a separate NFS client. When it is dropped, everything that runs in it is killed.
pub(crate) struct Host {
    pub(crate) name: String,
    index: u32,
    /// It only keeps the namespaces alive.
    process: Child,
}

impl Host {
    fn start(name: &str, index: u32) -> Self {
        sh(&format!(
            "ip netns add h{index} && ip link add v{index} type veth peer name eth0 netns h{index} &&
             ip addr add 10.0.{index}.1/24 dev v{index} && ip link set v{index} up"
        ));
        let script = format!(
            "hostname {name} && ip link set lo up && ip addr add 10.0.{index}.2/24 dev eth0 && ip link set eth0 up &&
             mkdir -p /mnt && echo up && exec sleep infinity"
        );
        let mut process = Command::new("ip")
            .args(["netns", "exec", &format!("h{index}"), "unshare", "--uts", "--mount", "--propagation", "private"])
            .args(["sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("iproute2 is there");
        let mut line = String::new();
        let output = process.stdout.take().expect("it is a pipe");
        BufReader::new(output).read_line(&mut line).expect("it says when it is up");
        assert_eq!(line, "up\n", "the host {name}");
        Self { name: name.to_owned(), index, process }
    }

    /// A command that runs on this host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.process.id().to_string(), "-n", "-u", "-m", program]).stdin(Stdio::null());
        command
    }

    /// No other host has this number.
    pub(crate) fn number(&self) -> u32 {
        self.index
    }

    /// The name of its network namespace.
    pub(crate) fn network(&self) -> String {
        format!("h{}", self.index)
    }

    /// Its address, and the server's address on the same link.
    pub(crate) fn addresses(&self) -> [String; 2] {
        [2, 1].map(|last| format!("10.0.{}.{last}", self.index))
    }

    #[track_caller]
    fn run(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).output().expect("nsenter is there")
    }

    pub(crate) fn output(&self, line: &str) -> String {
        String::from_utf8_lossy(&self.run(line).stdout).into_owned()
    }

    /// Mounts a folder of the export at /mnt.
    pub(crate) fn mount(&self, folder: &str, version: Version, options: &str) -> Result<(), String> {
        let options = format!("vers={version},{options}");
        self.mount_with(&format!("/export/{folder}"), &options)
    }

    pub(crate) fn mount_with(&self, path: &str, options: &str) -> Result<(), String> {
        let output = self.run(&format!("mount -t nfs -o sec=sys,{options} 10.0.{}.1:{path} /mnt", self.index));
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    pub(crate) fn unmount(&self) {
        let output = self.run("umount /mnt");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// A path on this host, for processes outside it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.process.id()))
    }

    /// From now on no packet passes, in either direction, not even those already on their way.
    pub(crate) fn cut(&self) {
        // First at once, without another program; then permanently.
        let flags = format!("/sys/class/net/v{}/flags", self.index);
        fs::write(&flags, LINK_DOWN).expect("sys is mounted");
        self.link("replace", "blackhole");
        fs::write(&flags, LINK_UP).expect("sys is mounted");
    }

    /// From now on every packet to the server is delayed; packets from it are not.
    pub(crate) fn slow(&self, delay_ms: u32) {
        sh(&format!("tc -n h{} qdisc replace dev eth0 root netem delay {delay_ms}ms", self.index));
    }

    /// Packets pass again.
    pub(crate) fn heal(&self) {
        self.link("replace", "pfifo");
    }

    fn link(&self, verb: &str, discipline: &str) {
        let index = self.index;
        // Both at once, so that the cut has one time.
        let ends = [
            format!("qdisc {verb} dev v{index} root {discipline}"),
            format!("-n h{index} qdisc {verb} dev eth0 root {discipline}"),
        ];
        let children =
            ends.map(|end| Command::new("tc").args(end.split_whitespace()).spawn().expect("iproute2 is there"));
        for mut child in children {
            assert!(child.wait().is_ok_and(|status| status.success()), "tc {verb} {discipline}");
        }
    }

    /// The mount's remote procedure calls so far, by name.
    pub(crate) fn calls(&self) -> BTreeMap<String, u64> {
        let path = format!("/proc/{}/mountstats", self.process.id());
        let text = fs::read_to_string(path).expect("the host is there");
        let mount = text.split("device ").find(|part| part.contains(" mounted on /mnt ")).expect("it is mounted");
        let operations = mount.split("per-op statistics").nth(1).expect("it is an NFS mount");
        let pairs = operations.lines().filter_map(|line| line.trim().split_once(": "));
        let counts = pairs.filter_map(|(name, rest)| Some((name.to_owned(), rest.split(' ').next()?.parse().ok()?)));
        counts.collect()
    }

    /// Starts a daemon on /mnt and waits until it serves.
    #[track_caller]
    pub(crate) fn daemon(&self, report: &Report, flags: &[&str]) -> Node {
        self.daemon_as(report, None, "/mnt", flags)
    }

    #[track_caller]
    pub(crate) fn daemon_as(&self, report: &Report, uid: Option<u32>, directory: &str, flags: &[&str]) -> Node {
        let mut node = self.spawn(report, uid, directory, flags);
        let deadline = Instant::now() + PATIENCE;
        while V1::try_connect(&node.address).is_err() {
            let ended = node.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "{}: the daemon ended: {ended:?}: {}", self.name, node.said());
            assert!(Instant::now() < deadline, "{}: the daemon does not serve: {}", self.name, node.said());
            thread::sleep(Duration::from_millis(10));
        }
        node
    }

    /// Starts a daemon that should refuse to start, and returns its output.
    pub(crate) fn daemon_refuses(&self, report: &Report, directory: &str) -> Result<String, String> {
        let mut node = self.spawn(report, None, directory, &[]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match node.child.try_wait().expect("it is our child") {
                Some(status) if status.code().is_some_and(|code| code != 0) => return Ok(node.said()),
                Some(status) => return Err(format!("{status}: {}", node.said())),
                None if Instant::now() > deadline => return Err(format!("it runs: {}", node.said())),
                None if V1::try_connect(&node.address).is_ok() => return Err(format!("it serves: {}", node.said())),
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Starts a daemon without waiting for it.
    pub(crate) fn spawn(&self, report: &Report, uid: Option<u32>, directory: &str, flags: &[&str]) -> Node {
        static NODES: AtomicU32 = AtomicU32::new(0);
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let base = Path::new(SCRATCH).join(format!("{}-{number}", self.name));
        let address = format!("unix:{}", base.with_extension("socket").display());
        let log = base.with_extension("log");
        let file = File::create(&log).expect("memory is left");
        let mut command = match uid {
            None => self.command("/lab/distrilockd"),
            Some(uid) => {
                let mut command = self.command("setpriv");
                command.arg(format!("--reuid={uid}")).arg(format!("--regid={uid}")).arg("--clear-groups");
                command.arg("/lab/distrilockd");
                command
            }
        };
        command.args(["-d", directory, "--tcp", &address]).args(flags);
        command.stdout(Stdio::null()).stderr(file);
        let child = command.spawn().expect("nsenter is there");
        report.show_if_failed(log.clone());
        Node { child, address, log }
    }

    /// A collector on this host: the command's or the library's.
    pub(crate) fn collector(&self) -> Command {
        let mut command = self.command(if COMMAND.is_some() { "/lab/distrilock" } else { "/lab/payload" });
        command.args(["gc", "/mnt", "--idle", "0"]);
        command
    }

    /// Runs the command-line program on this host; returns its exit status and output.
    pub(crate) fn distrilock(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command("/lab/distrilock").args(arguments).output().expect("nsenter is there");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// Takes the link down for good, and kills everything on the host.
    pub(crate) fn destroy(mut self) {
        sh(&format!("ip link set v{} down", self.index));
        self.end();
    }

    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end();
    }
}

/// A daemon on a host.
pub(crate) struct Node {
    child: Child,
    pub(crate) address: String,
    pub(crate) log: PathBuf,
}

impl Node {
    /// A fresh session.
    #[track_caller]
    pub(crate) fn session(&self) -> V1 {
        V1::connect(&self.address)
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Sends SIGKILL. The process may only end when the file system answers, so this does not wait.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let mut ended = false;
        // A process that waits for a cut link ends later, or never; it must not delay the lab.
        let deadline = Instant::now() + Duration::from_secs(2);
        while !ended && Instant::now() < deadline {
            ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The names of the lock files in a folder of the export.
pub(crate) fn lock_files(folder: &str) -> Vec<String> {
    crate::support::files(Path::new(&format!("/export/{folder}")))
}

/// Waits until a folder of the export has no lock file.
#[track_caller]
pub(crate) fn eventually_clean(folder: &str) {
    eventually(&format!("{folder} is clean: {:?}", lock_files(folder)), || lock_files(folder).is_empty());
}
