//! `fanwire doctor` and `fanwire tune` on this machine: what they say agrees, and what is put back is as it was, byte for byte.
//!
//! What a network namespace has of its own is changed in one of the test's. Some settings exist once for the whole machine: they are only
//! ever raised, for a moment, and put back also when the test fails.

use crate::denied::refusing;
use crate::gateway::{Gateway, fanwire};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A directory of its own for one test, for everybody to read, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("fanwire-doctor-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Directory(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether the tests run as root.
fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Without settings of whoever runs the tests.
fn clean(mut command: Command) -> Command {
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("FANWIRE_")) {
        command.env_remove(key);
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    clean(fanwire(arguments)).output().unwrap()
}

/// The JSON of `doctor`, and its exit code.
fn doctor(mut command: Command) -> (Value, i32) {
    let output = command.output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (json, output.status.code().unwrap())
}

fn find<'a>(report: &'a Value, what: &str) -> &'a Value {
    let found = report["findings"].as_array().unwrap().iter().find(|finding| finding["what"] == what);
    found.unwrap_or_else(|| panic!("no {what} in {report:#}"))
}

/// A script in a network namespace of its own, in which `$FANWIRE` is the binary.
fn in_own_network(script: &str) -> Output {
    let mut command = Command::new("unshare");
    command.args(if is_root() { &["-n"][..] } else { &["-r", "-n"] }).args(["sh", "-euc", script]).stdin(Stdio::null());
    clean(command).env("FANWIRE", env!("CARGO_BIN_EXE_fanwire")).output().unwrap()
}

#[test]
fn text_json_and_exit_code_say_the_same() {
    for (connections, more) in [("100", &[][..]), ("100000000", &["--set", "shards.count=1"])] {
        let arguments = [&["doctor", "--connections", connections][..], more].concat();
        let (report, code) = doctor(clean(fanwire(&[&arguments[..], &["--json"]].concat())));
        let plain = run(&arguments);
        assert_eq!(plain.status.code(), Some(code));
        let stops =
            report["findings"].as_array().unwrap().iter().filter(|finding| finding["verdict"] == "stops").count();
        assert_eq!((report["stops"].as_u64(), code), (Some(stops as u64), i32::from(stops > 0)), "{report:#}");
        assert_eq!(report["connections"].to_string(), connections);
        let plain = text(&plain.stdout);
        assert_eq!(plain.lines().filter(|line| line.starts_with("STOPS ")).count(), stops, "{plain}");
        assert!(plain.contains(&format!("{connections} connections")), "{plain}");
    }
}

#[test]
fn a_machine_that_serves_is_one_that_the_doctor_lets_through() {
    drop(Gateway::start(&[]));
    let (report, code) = doctor(clean(fanwire(&["doctor", "--connections", "100", "--json"])));
    assert_eq!(code, 0, "{report:#}");
    for what in ["kernel", "io_uring", "shards", "open files", "memory", "cores", "clock", "net.core.somaxconn"] {
        assert_ne!(find(&report, what)["verdict"], "unseen", "{what}");
    }
}

#[test]
fn what_stops_the_gateway_stops_in_the_doctors_words_too() {
    let refused =
        refusing(clean(fanwire(&["doctor", "--connections", "100", "--json"])), libc::SYS_io_uring_setup, libc::EPERM);
    let (report, code) = doctor(refused);
    assert_eq!(code, 1);
    let ring = find(&report, "io_uring");
    assert_eq!(
        (ring["verdict"].as_str(), ring["found"].as_str()),
        (Some("stops"), Some("refused; a seccomp filter is on"))
    );
    assert!(ring["fix"].as_str().unwrap().contains("seccomp profile"), "{ring}");

    let mut limited = Command::new("sh");
    limited.args([
        "-c",
        &format!(
            "ulimit -n 200; exec {} doctor --connections 1000 --set shards.count=1 --json",
            env!("CARGO_BIN_EXE_fanwire")
        ),
    ]);
    let (report, code) = doctor(clean(limited));
    let shards = find(&report, "shards");
    assert_eq!((code, shards["verdict"].as_str()), (1, Some("stops")), "{report:#}");
    assert_eq!(find(&report, "open files")["found"], "soft 200, hard 200");
}

#[test]
fn the_fix_of_the_doctor_is_one() {
    let arguments = ["doctor", "--connections", "30000", "--json", "--set", "shards.connections_max=1000"];
    let (report, code) = doctor(clean(fanwire(&arguments)));
    let fix = find(&report, "shards")["fix"].as_str().unwrap().to_owned();
    assert_eq!(code, 1);
    let directory = Directory::new("fix");
    // The lines of the fix are a file, but for what is said behind the section's name.
    let toml: String = fix.lines().map(|line| line.split("   (").next().unwrap().to_owned() + "\n").collect();
    fs::write(directory.file("fanwire.toml"), toml).unwrap();
    let (report, _) = doctor(clean(fanwire(&[
        "doctor",
        "--connections",
        "30000",
        "--json",
        "--config",
        &directory.file("fanwire.toml"),
    ])));
    assert_eq!(find(&report, "shards")["verdict"], "ok", "{report:#}");
}

#[test]
fn an_ordinary_user_is_told_what_could_not_be_seen() {
    let directory = Directory::new("nobody");
    fs::copy(env!("CARGO_BIN_EXE_fanwire"), directory.file("fanwire")).unwrap();
    let binary = directory.file("fanwire");
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs", &binary]);
        command
    } else {
        Command::new(binary)
    };
    command.args(["doctor", "--connections", "100", "--json"]).current_dir("/");
    let (report, code) = doctor(clean(command));
    assert_eq!(code, 0, "{report:#}");
    for finding in report["findings"].as_array().unwrap() {
        assert_eq!(finding["fix"].is_null(), finding["verdict"] == "ok", "{finding}");
        if finding["verdict"] == "unseen" {
            assert!(!finding["fix"].as_str().unwrap().is_empty(), "{finding}");
        }
    }
}

#[test]
fn a_gateway_that_runs_is_looked_at_by_its_process() {
    let gateway = Gateway::start(&[]);
    let (report, _) =
        doctor(clean(fanwire(&["doctor", "--connections", "100", "--json", "--pid", &gateway.pid().to_string()])));
    // It has raised its soft limit; nobody tried to have a ring in its name.
    let found = find(&report, "open files")["found"].as_str().unwrap().to_owned();
    let (soft, hard) = found.strip_prefix("soft ").unwrap().split_once(", hard ").unwrap();
    assert_eq!(soft, hard);
    assert!(!report.to_string().contains(r#""what":"io_uring""#));
    let gone = run(&["doctor", "--pid", "4294967295"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("there is no process 4294967295"));
}

#[test]
fn wrong_arguments_are_2_and_a_wrong_configuration_is_78() {
    for command in ["doctor", "tune"] {
        for wrong in
            [&["--connections", "0"][..], &["--connections", "many"], &["--slow-percent", "200"], &["--nonsense"]]
        {
            assert_eq!(run(&[&[command], wrong].concat()).status.code(), Some(2), "{command} {wrong:?}");
        }
        let output = run(&[command, "--set", "shards.counts=1"]);
        assert_eq!(output.status.code(), Some(78));
        assert!(text(&output.stderr).contains("shards.count"), "{output:?}");
    }
    for wrong in [&["--apply", "--revert"][..], &["--nic", "no-such-card"], &["--revert", "--nic", "lo"]] {
        assert_eq!(run(&[&["tune"], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn applied_the_doctor_agrees_and_reverted_every_byte_is_as_before() {
    let directory = Directory::new("apply");
    let state = directory.file("tune.json");
    let output = in_own_network(&format!(
        r#"
        see() {{ find /proc/sys/net -type f -perm -600 -exec sh -c 'echo "$1"; cat "$1"' . {{}} \; 2>/dev/null || true; }}
        see > {0}.before
        "$FANWIRE" tune --connections 1000000 --dry-run > {0}.shown
        "$FANWIRE" tune --connections 1000000 > {0}.bare
        see > {0}.dry
        "$FANWIRE" tune --connections 200000 --apply --state {0} > {0}.first
        "$FANWIRE" tune --connections 1000000 --apply --state {0} > {0}.second
        "$FANWIRE" doctor --connections 1000000 --json > {0}.doctor || true
        "$FANWIRE" tune --connections 1000000 --dry-run --state {0} > {0}.nothing
        "$FANWIRE" tune --revert --state {0} > {0}.reverted
        see > {0}.after
        ! "$FANWIRE" tune --revert --state {0} 2> {0}.again
        "#,
        state
    ));
    // Whatever went wrong: what is the whole machine's goes back. Nothing to put back is what is expected.
    let _ = run(&["tune", "--revert", "--state", &state]);
    assert!(output.status.success(), "{output:?}");
    let read = |what: &str| fs::read_to_string(format!("{state}.{what}")).unwrap();
    assert_eq!(read("dry"), read("before"), "a dry run changes nothing");
    assert_eq!(read("shown").lines().next(), read("bare").lines().next());
    assert!(
        read("shown").contains("net.core.somaxconn: ") && read("shown").contains("       why  "),
        "{}",
        read("shown")
    );
    assert!(read("shown").contains(" tune --connections 1000000 --apply\n"), "{}", read("shown"));
    assert_eq!(read("after"), read("before"), "as it was, byte for byte");
    assert!(read("second").contains("→ 65535"), "{}", read("second"));
    assert!(!read("nothing").contains("net.core.somaxconn"), "{}", read("nothing"));
    assert!(read("again").contains("nothing was applied"), "{}", read("again"));
    let report: Value = serde_json::from_str(&read("doctor")).unwrap();
    let mut agreed = BTreeMap::new();
    for line in read("second").lines().chain(read("first").lines()) {
        if let Some((name, _)) = line.split_once(": ").filter(|(_, change)| change.contains(" → ")) {
            agreed.insert(name.to_owned(), find(&report, name)["verdict"].as_str().unwrap().to_owned());
        }
    }
    assert!(agreed.len() >= 3 && agreed.values().all(|verdict| verdict == "ok"), "{agreed:?}");
}

/// Puts back what a test has applied, also when it fails.
struct Applied<'a>(&'a str);

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        if fs::exists(self.0).unwrap_or(false) {
            let _ = run(&["tune", "--revert", "--state", self.0]);
        }
    }
}

#[test]
fn what_the_whole_machine_has_once_is_raised_and_put_back() {
    const NAMES: [&str; 3] = ["net/ipv4/tcp_mem", "net/ipv4/tcp_max_orphans", "fs/file-max"];
    let see = || NAMES.map(|name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap());
    let directory = Directory::new("machine");
    let (state, file) = (directory.file("tune.json"), directory.file("90-fanwire.conf"));
    let before = see();
    let applied = Applied(&state);
    let drop_in = format!("--drop-in={file}");
    // More than any machine that runs tests has by itself.
    let arguments = ["tune", "--connections", "30000000", "--apply", "--state", &state, &drop_in];
    let output = run(&arguments);
    // An ordinary user may not, and root in a container that has it read-only. Opening alone changes nothing.
    if fs::OpenOptions::new().write(true).open("/proc/sys/net/ipv4/tcp_mem").is_err() {
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("run it "), "{output:?}");
        assert_eq!(see(), before);
        return;
    }
    assert!(output.status.success(), "{output:?}");
    assert_ne!(see(), before);
    let (report, _) = doctor(clean(fanwire(&["doctor", "--connections", "30000000", "--json"])));
    for name in NAMES {
        assert_eq!(find(&report, &name.replace('/', "."))["verdict"], "ok", "{report:#}");
    }
    let written = fs::read_to_string(&file).unwrap();
    for value in ["\nnet.core.somaxconn = 65535\n", "\nfs.file-max = "] {
        assert!(written.contains(value), "{written}");
    }
    let reverted = run(&["tune", "--revert", "--state", &state, "--json"]);
    let outcome: Value = serde_json::from_slice(&reverted.stdout).unwrap_or_else(|e| panic!("{e}: {reverted:?}"));
    assert!(outcome["done"].as_array().unwrap().iter().any(|line| line == &format!("{file} removed")), "{outcome:#}");
    assert_eq!(see(), before);
    assert!(!fs::exists(&file).unwrap() && !fs::exists(&state).unwrap());
    drop(applied);
}
