//! `fanwire config import`, as whoever moves in uses it: the real binary, files as gpush and go-push have them, and what it
//! prints checked by `fanwire config check`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory of its own for one test, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("fanwire-import-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The binary among the fixtures, without variables of ours.
fn fanwire(arguments: &[&str]) -> Output {
    fanwire_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/fixtures"), arguments)
}

fn fanwire_in(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
    command.args(arguments).current_dir(directory);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FANWIRE_")) {
        command.env_remove(name);
    }
    command.output().unwrap()
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let base64 = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(text).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Imports `files` and has the result checked; what was printed, and what was remarked.
fn imported(from: &str, files: &[&str]) -> (String, String) {
    let output = fanwire(&[&["config", "import", from], files].concat());
    assert_eq!(output.status.code(), Some(0), "{files:?}: {}", text(&output.stderr));
    let directory = Directory::new(&files.join("-").replace('/', "-"));
    let file = directory.0.join("fanwire.toml");
    std::fs::write(&file, &output.stdout).unwrap();
    let printed = text(&output.stdout).to_owned();
    if printed.lines().any(|line| line.starts_with("etcd_password_file")) {
        let checked = fanwire_in(&directory.0, &["config", "check"]);
        assert_eq!(checked.status.code(), Some(78), "its password is not there yet");
        assert!(text(&checked.stderr).contains("cluster.etcd_password_file etcd.password"), "{checked:?}");
        std::fs::write(directory.0.join("etcd.password"), "secret\n").unwrap();
    }
    if printed.lines().any(|line| line.starts_with("certificate_file")) {
        let checked = fanwire_in(&directory.0, &["config", "check"]);
        assert_eq!(checked.status.code(), Some(78), "its certificate is not there yet");
        assert!(text(&checked.stderr).contains("compat.gopush.certificate_file = \"./default.pem\""), "{checked:?}");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(directory.0.join("default.pem"), pem("CERTIFICATE", made.cert.der())).unwrap();
        std::fs::write(directory.0.join("default.key"), pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
    }
    let checked = fanwire_in(&directory.0, &["config", "check"]);
    assert_eq!(checked.status.code(), Some(0), "{files:?}: {}\n{printed}", text(&checked.stderr));
    (printed, text(&output.stderr).to_owned())
}

#[test]
fn every_fixture_alone_and_each_pair_becomes_a_file_that_check_accepts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/fixtures");
    for from in ["gpush", "go-push"] {
        let entries = std::fs::read_dir(root.join(from)).unwrap().map(|e| e.unwrap().file_name());
        let files: Vec<_> = entries.map(|name| format!("{from}/{}", name.to_str().unwrap())).collect();
        assert!(files.len() >= 3, "{files:?}");
        for a in &files {
            imported(from, &[a]);
            for b in files.iter().filter(|b| *b != a) {
                imported(from, &[a, b]);
            }
        }
    }
}

#[test]
fn gpush_socket_and_proxy_become_one_file() {
    let (printed, remarks) = imported("gpush", &["gpush/socket-deploy.toml", "gpush/proxy.toml"]);
    for line in [
        "address = \"0.0.0.0:9992\"",
        "grpc_address = \"0.0.0.0:10067\"",
        "http_address = \"0.0.0.0:10068\"",
        "insecure = true",
        "heartbeat_timeout_ms = 86_400_000",
        "tick_interval_us = 500_000",
        "deflate = true",
        "deflate_level = 9",
        "etcd = [\"http://10.0.0.7:2379\", \"http://10.0.0.8:2379\"]",
        "gpush_prefix = \"proxy\"",
        "etcd_user = \"gpush\"",
        "etcd_password_file = \"etcd.password\"",
    ] {
        assert!(printed.lines().any(|l| l == line), "{line} in\n{printed}");
    }
    for key in ["BucketCount", "DispatchChanSize", "ReadBuf", "WriteBuf", "EableEpoller", "maxCount", "keyPrefix"] {
        assert!(printed.lines().any(|l| l.starts_with('#') && l.contains(key)), "{key} in\n{printed}");
    }
    assert!(!printed.contains("not for the log") && !remarks.contains("not for the log"));
    for said in [
        "publish.insecure = true: ",
        "etcd.endpoints = [\"127.0.0.1:2379\"] (gpush/proxy.toml:7) is not what",
        "cluster.etcd_password_file = \"etcd.password\": ",
    ] {
        assert!(remarks.contains(said), "{said} in\n{remarks}");
    }
}

#[test]
fn gpush_keys_in_etcd_become_a_cluster_whose_user_is_empty_as_there() {
    let (printed, _) = imported("gpush", &["gpush/socket.toml", "gpush/proxy.toml"]);
    for line in ["etcd = [\"http://127.0.0.1:2379\"]", "gpush_prefix = \"proxy\""] {
        assert!(printed.lines().any(|l| l == line), "{line} in\n{printed}");
    }
    assert!(!printed.lines().any(|line| line.starts_with("etcd_")), "{printed}");
}

#[test]
fn each_key_of_the_fixtures_is_accounted_for() {
    for (from, files) in [
        ("gpush", &["gpush/socket.toml", "gpush/proxy.toml"][..]),
        ("go-push", &["go-push/gateway.json", "go-push/logic.json"]),
    ] {
        let (printed, remarks) = imported(from, files);
        let words = printed.split_whitespace().collect::<Vec<_>>().join(" ").replace(" # ", " ");
        for file in files {
            let source =
                std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import/fixtures").join(file));
            for (i, line) in source.unwrap().lines().enumerate() {
                let is_key = line.contains(" = ") || line.contains("\": ") && !line.contains("hostname");
                assert!(!is_key || words.contains(&format!("({file}:{})", i + 1)), "{file}:{}: {line}", i + 1);
            }
        }
        assert!(!remarks.contains("has no key"), "{remarks}");
    }
}

#[test]
fn keys_in_any_case_and_unknown_ones_are_told() {
    let (printed, remarks) = imported("gpush", &["gpush/any-case.json"]);
    for line in ["address = \"0.0.0.0:9992\"", "heartbeat_timeout_ms = 120_000", "tick_interval_us = 1_000_000"] {
        assert!(printed.lines().any(|l| l == line), "{line} in\n{printed}");
    }
    for unknown in ["gpush/any-case.json:10: gpush has no key `CONNECTION.HeartBeat`", "`weather`"] {
        assert!(remarks.contains(unknown), "{unknown} in\n{remarks}");
    }
    let (printed, remarks) = imported("go-push", &["go-push/any-case.json"]);
    assert!(printed.contains("0.0.0.0:8778") && printed.contains("0.0.0.0:8788"), "{printed}");
    assert!(remarks.contains("(was wsHeartbeatInterval meant?)") && remarks.contains("`colour`"), "{remarks}");
}

#[test]
fn what_is_malformed_ends_with_78_and_its_place() {
    let directory = Directory::new("malformed");
    for (name, content, said) in [
        ("a.toml", "[server]\nport = \n", "a.toml:2: this is not TOML"),
        ("b.json", "{\n\"wsPort\" 7777}", "b.json:2:10: this is not JSON"),
        ("c.json", "{\"wsPort\": \"many\"}", "c.json:1: wsPort = \"many\": it must be a port"),
    ] {
        let file = directory.0.join(name);
        std::fs::write(&file, content).unwrap();
        let from = if name.ends_with("toml") { "gpush" } else { "go-push" };
        let output = fanwire(&["config", "import", from, file.to_str().unwrap()]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(78), ""), "{name}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
    let absent = fanwire(&["config", "import", "gpush", "absent.toml"]);
    assert_eq!(absent.status.code(), Some(78));
    assert!(text(&absent.stderr).starts_with("absent.toml: it can't be read"), "{}", text(&absent.stderr));
}
