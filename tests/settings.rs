//! The settings as the operator meets them: the real binary, its files, its messages, its exit codes.

use fanwire::config::{self, Config};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A directory of its own for one test, gone at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("fanwire-settings-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn with(self, file: &str, text: &str) -> Directory {
        fs::write(self.0.join(file), text).unwrap();
        self
    }

    /// Runs the binary here, without variables of ours but `environment`.
    fn fanwire(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire"));
        command.args(arguments).current_dir(&self.0);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FANWIRE_")) {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied()).output().unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn docs_configuration_md_is_fresh() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIGURATION.md")).unwrap_or_default();
    assert!(
        page == config::markdown(),
        "docs/CONFIGURATION.md is stale: run `cargo run -- config docs > docs/CONFIGURATION.md`"
    );
}

#[test]
fn the_printed_default_file_loads_and_is_the_default() {
    let directory = Directory::new("default");
    let printed = directory.fanwire(&["config", "default"], &[]);
    assert!(printed.status.success());
    let directory = directory.with("all.toml", text(&printed.stdout));
    let loaded = config::load(Some(&directory.0.join("all.toml")), std::iter::empty(), &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let keys = text(&printed.stdout).lines().filter(|l| !l.starts_with('#') && l.contains(" = ")).count();
    assert_eq!(keys, config::sections().iter().map(|s| s.settings.len()).sum::<usize>());
}

#[test]
fn check_says_ok_and_which_file_it_read() {
    let directory = Directory::new("ok").with("fanwire.toml", "[shards]\ncount = 2\n").with("other.toml", "");
    for (arguments, said) in
        [(&["config", "check"][..], "ok: fanwire.toml\n"), (&["config", "check", "other.toml"], "ok: other.toml\n")]
    {
        let output = directory.fanwire(arguments, &[]);
        assert_eq!((text(&output.stdout), output.status.code()), (said, Some(0)));
    }
    let output = Directory::new("none").fanwire(&["config", "check"], &[("FANWIRE_SHARDS__COUNT", "2")]);
    assert_eq!((text(&output.stdout), output.status.code()), ("ok: no file, only defaults and environment\n", Some(0)));
}

#[test]
fn what_is_wrong_ends_check_and_serve_alike_with_78() {
    let directory = Directory::new("wrong").with("fanwire.toml", "[shards]\ncuont = 2\n");
    for arguments in [&["config", "check"][..], &["serve"], &[]] {
        let output = directory.fanwire(arguments, &[("FANWIRE_LOG__LEVEL", "loud")]);
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        assert_eq!(text(&output.stdout), "");
        let said: Vec<_> = text(&output.stderr).lines().collect();
        assert_eq!(said[0], "fanwire.toml:2: no setting is called `shards.cuont`; the nearest is `shards.count`");
        assert!(
            said[1].starts_with("FANWIRE_LOG__LEVEL: log.level = \"loud\" is not allowed: it must be "),
            "{said:?}"
        );
        assert_eq!(said.len(), 2);
    }
    let by_flag = Directory::new("flag").fanwire(&["--shards", "many"], &[]);
    assert_eq!(by_flag.status.code(), Some(78));
    assert_eq!(
        text(&by_flag.stderr),
        "command line: shards.count = \"many\" is not allowed: it must be a whole number, 0 to 1024\n"
    );
}

#[test]
fn a_named_file_must_be_there_and_of_a_reasonable_size() {
    let directory = Directory::new("file").with("large.toml", &"#\n".repeat(1 << 20));
    for (file, said) in [("absent.toml", "No such file"), ("large.toml", "larger than")] {
        let output = directory.fanwire(&["serve", "--config", file], &[]);
        assert_eq!(output.status.code(), Some(78));
        let stderr = text(&output.stderr);
        assert!(
            stderr.starts_with(&format!("{file}: the configuration can't be read: ")) && stderr.contains(said),
            "{stderr}"
        );
    }
}

#[test]
fn wrong_arguments_end_with_2_and_help_names_the_exit_codes() {
    let directory = Directory::new("usage");
    for arguments in [&["--set", "shards.count"][..], &["--wrong"], &["wrong"], &["config"]] {
        assert_eq!(directory.fanwire(arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["serve", "--help"]] {
        let help = directory.fanwire(arguments, &[]);
        assert_eq!(help.status.code(), Some(0));
        for code in [" 0  done", " 1  failed", " 2  wrong", "78  the configuration"] {
            assert!(text(&help.stdout).contains(code), "{code}");
        }
    }
}
