//! Where values come from: flags beat environment beats file beats defaults. Whatever is not known or not allowed is an
//! error that names its place, and all errors are told at once.

use super::{Allowed, Config, Listen, Section, Setting, sections};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Read from the working directory if no file is named and this one exists.
pub const FILE_DEFAULT: &str = "fanwire.toml";

/// Largest configuration file.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the names of environment variables begin with: `FANWIRE_SECTION__KEY`, `FANWIRE_LISTEN__0__ADDRESS`.
pub const ENVIRONMENT_PREFIX: &str = "FANWIRE_";

/// Most blocks of a list section.
const BLOCKS_MAX: usize = 64;

/// A configuration that holds to every bound, and what the operator should hear about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file it was read from, if any.
    pub file: Option<PathBuf>,
    /// What is allowed but probably not meant. Sentences, for the log.
    pub warnings: Vec<String>,
}

/// Everything that is wrong with a configuration, at least one thing. The operator must mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// In the order of finding: file, environment, flags, then what does not fit together.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting it is about, as `section.key` or `section.0.key`; empty if the file itself is wrong.
    pub key: String,
    /// Where it was set, as `file:line`, the name of a variable, or `command line`; none if it is a default.
    pub place: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Puts the configuration together. `file` must exist; without one, [`FILE_DEFAULT`] of the working directory is read if it
/// is there. Of `environment`, only names with [`ENVIRONMENT_PREFIX`] count. `flags` are (`section.key`, value), the last
/// one of a key counts.
///
/// # Errors
/// A file that can't be read or is not TOML; an unknown key, with the nearest known one; a value that is not allowed; values
/// that don't fit together ([`Config::validate`]). Each with its place.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    flags: &[(String, String)],
) -> Result<Loaded, ConfigError> {
    let mut sources = Sources::default();
    let file = file.map(Path::to_path_buf).or_else(|| {
        let default = PathBuf::from(FILE_DEFAULT);
        default.exists().then_some(default)
    });
    if let Some(file) = &file {
        match read(file) {
            Ok(text) => sources.add_file(&file.display().to_string(), &text),
            Err(error) => {
                sources.problem(
                    "",
                    Some(file.display().to_string()),
                    format!("the configuration can't be read: {error}"),
                );
            }
        }
    }
    // Sorted, so that the blocks of a list come in order and errors don't jump about.
    let mut environment: Vec<_> = environment.filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX)).collect();
    environment.sort();
    for (name, value) in environment {
        sources.add_variable(&name, &value);
    }
    for (key, value) in flags {
        sources.add_flag(key, value);
    }
    let (config, warnings) = sources.finish()?;
    Ok(Loaded { config, file, warnings })
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    if File::open(file)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)? as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// `section.key`, or `section.index.key` of a list section.
type Key = (&'static str, Option<usize>, &'static str);

fn dotted((section, index, key): Key) -> String {
    match index {
        Some(index) => format!("{section}.{index}.{key}"),
        None => format!("{section}.{key}"),
    }
}

/// Values gathered so far, a later source over an earlier one.
#[derive(Default)]
struct Sources {
    values: BTreeMap<Key, (toml::Value, String)>,
    /// There is a file, whatever it says.
    has_file: bool,
    /// How many blocks the file gives to its `[[listen]]`; none if it doesn't mention it.
    listen_blocks: Option<usize>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Sources {
    fn problem(&mut self, key: &str, place: Option<String>, message: String) {
        self.problems.push(Problem { key: key.to_owned(), place, message });
    }

    fn add_file(&mut self, file: &str, text: &str) {
        self.has_file = true;
        let place = |start: usize| format!("{file}:{}", 1 + text[..start].matches('\n').count());
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let place = error.span().map_or_else(|| file.to_owned(), |span| place(span.start));
                return self.problem("", Some(place), format!("this is not TOML: {}", error.message()));
            }
        };
        // A table of this parser is sorted by name; errors read better in the order of the file.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in entries {
            let place_of_name = place(name.span().start);
            let Some(section) = sections().iter().find(|s| s.name == name.get_ref().as_ref()) else {
                let message = match value.get_ref() {
                    DeValue::Table(_) | DeValue::Array(_) => unknown_section(name.get_ref()),
                    _ => unknown_key("", name.get_ref(), |s| format!("{}.{}", s.section, s.key)),
                };
                self.problem(name.get_ref(), Some(place_of_name), message);
                continue;
            };
            match (section.is_list, value.get_ref()) {
                (false, DeValue::Table(table)) => self.add_table(section, None, table, &place),
                (true, DeValue::Array(blocks)) => {
                    self.listen_blocks = Some(blocks.len());
                    for (index, block) in blocks.iter().enumerate() {
                        match block.get_ref() {
                            DeValue::Table(table) => self.add_table(section, Some(index), table, &place),
                            _ => self.problem(section.name, Some(place(block.span().start)), wants(section)),
                        }
                    }
                }
                _ => self.problem(section.name, Some(place_of_name), wants(section)),
            }
        }
    }

    fn add_table(
        &mut self,
        section: &Section,
        index: Option<usize>,
        table: &DeTable<'_>,
        place: &impl Fn(usize) -> String,
    ) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let place = place(key.span().start);
            match section.settings.iter().find(|s| s.key == key.get_ref().as_ref()) {
                Some(setting) => self.add(setting, index, plain(value), place),
                None => {
                    let message = unknown_key(section.name, key.get_ref(), |s| format!("{}.{}", s.section, s.key));
                    self.problem(&format!("{}.{}", section.name, key.get_ref()), Some(place), message);
                }
            }
        }
    }

    fn add_variable(&mut self, name: &str, value: &str) {
        let rest = name.strip_prefix(ENVIRONMENT_PREFIX).unwrap_or(name).to_ascii_lowercase();
        let parts: Vec<&str> = rest.split("__").collect();
        if let Some((setting, index)) = find(&parts) {
            return self.add(setting, index, setting.allowed.read(value), name.to_owned());
        }
        let known = |s: &Setting| {
            let index = if is_list(s.section) { "0__" } else { "" };
            format!("{ENVIRONMENT_PREFIX}{}__{index}{}", s.section, s.key).to_ascii_uppercase()
        };
        let (nearest, similarity) = nearest(settings().map(known), name);
        // Kubernetes gives every container variables like FANWIRE_PORT_9992_TCP if a service is called fanwire. Without
        // `__` a name is no setting; it is a mistake if it comes close to one, and somebody else's otherwise.
        if parts.len() > 1 || similarity > 0.85 {
            self.problem(
                &parts.join("."),
                Some(name.to_owned()),
                format!("no setting has this name; the nearest is {nearest}"),
            );
        } else if !rest.starts_with("port") && !rest.contains("service_") {
            self.warnings.push(format!("{name} is not a setting (those have `__` after the section) and is ignored"));
        }
    }

    fn add_flag(&mut self, name: &str, value: &str) {
        const PLACE: &str = "command line";
        let parts: Vec<&str> = name.split('.').collect();
        match find(&parts) {
            Some((setting, index)) => self.add(setting, index, setting.allowed.read(value), PLACE.to_owned()),
            None => {
                let known = |s: &Setting| dotted((s.section, is_list(s.section).then_some(0), s.key));
                let message = match name.split_once('.') {
                    Some((section, key)) => unknown_key(section, key, known),
                    None => unknown_key("", name, known),
                };
                self.problem(name, Some(PLACE.to_owned()), message);
            }
        }
    }

    fn add(&mut self, setting: &Setting, index: Option<usize>, value: toml::Value, place: String) {
        let key = (setting.section, index, setting.key);
        match refusal(&dotted(key), &setting.allowed, &value) {
            None => drop(self.values.insert(key, (value, place))),
            Some(message) => self.problem(&dotted(key), Some(place), message),
        }
    }

    fn finish(mut self) -> Result<(Config, Vec<String>), ConfigError> {
        let mut config = Config::default();
        if let Some(blocks) = self.listen_blocks {
            config.listen = vec![Listen::default(); blocks];
        }
        // Sorted by index within a section, so that blocks are added in order.
        for (key, (_, place)) in &self.values {
            let Some(index) = key.1 else { continue };
            if index == config.listen.len() && index < BLOCKS_MAX {
                config.listen.push(Listen::default());
            } else if index >= config.listen.len() {
                let message = format!(
                    "{} is block {index} of a list of {}, counted from 0: give the blocks before it first, at most {BLOCKS_MAX} in all",
                    dotted(*key),
                    config.listen.len()
                );
                self.problems.push(Problem { key: dotted(*key), place: Some(place.clone()), message });
            }
        }
        if config.listen.len() > BLOCKS_MAX {
            let message =
                format!("{} blocks of [[listen]] are too many: give at most {BLOCKS_MAX}", config.listen.len());
            self.problem("listen", None, message);
        }
        if !self.problems.is_empty() {
            return Err(ConfigError { problems: self.problems });
        }
        if !self.has_file {
            self.allow_all_origins(&mut config);
        }
        let mut table = toml::Value::try_from(&config).expect("a default configuration is TOML");
        for ((section, index, key), (value, _)) in &self.values {
            let section = &mut table[*section];
            let section = if let Some(index) = index { &mut section[*index] } else { section };
            section[*key] = value.clone();
        }
        let config: Config = table.try_into().expect("every value was accepted by its setting");
        match config.validate() {
            Ok(warnings) => {
                self.warnings.extend(warnings);
                Ok((config, self.warnings))
            }
            Err(mut error) => {
                let places: BTreeMap<String, &String> =
                    self.values.iter().map(|(key, (_, place))| (dotted(*key), place)).collect();
                for problem in &mut error.problems {
                    problem.place = places.get(&problem.key).map(ToString::to_string);
                }
                Err(error)
            }
        }
    }
}

impl Sources {
    /// Who tries it without a file comes from any page; who writes a file is to say from which.
    fn allow_all_origins(&mut self, config: &mut Config) {
        let mut all = false;
        for (index, listen) in config.listen.iter_mut().enumerate() {
            if !self.values.contains_key(&("listen", Some(index), "allowed_origins")) {
                listen.allowed_origins = vec!["*".to_owned()];
                all = true;
            }
        }
        if all {
            self.warnings.push(
                "no configuration file: pages of every Origin may connect; listen.N.allowed_origins says which may"
                    .to_owned(),
            );
        }
    }
}

/// What to say about a value that is not allowed. If it is of the wrong type, the right one is named first: `"2"` and `6.1`
/// would otherwise look like what is asked for.
pub(super) fn refusal(key: &str, allowed: &Allowed, value: &toml::Value) -> Option<String> {
    let form = match (allowed, value) {
        (Allowed::Integer(_), toml::Value::Integer(_)) => "",
        (Allowed::Integer(_), _) => "a whole number, ",
        (Allowed::OneOf(_) | Allowed::Text { .. }, toml::Value::String(_)) => "",
        (Allowed::OneOf(_) | Allowed::Text { .. }, _) => "text in quotes, ",
        (Allowed::Bool, _) => "",
        (Allowed::List { .. }, _) => "",
    };
    (!allowed.accepts(value)).then(|| format!("{key} = {value} is not allowed: it must be {form}{allowed}"))
}

/// A leaf of the file as a plain value. Types no setting has become text, which is then refused by what it shows.
fn plain(value: &Spanned<DeValue<'_>>) -> toml::Value {
    match value.get_ref() {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Boolean(b) => toml::Value::Boolean(*b),
        DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
            Ok(n) => toml::Value::Integer(n),
            Err(_) => toml::Value::Float(f64::INFINITY), // Beyond any range.
        },
        DeValue::Float(n) => toml::Value::Float(n.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Datetime(moment) => toml::Value::Datetime(*moment),
        DeValue::Array(items) => toml::Value::Array(items.iter().map(plain).collect()),
        DeValue::Table(_) => toml::Value::Table(toml::Table::new()),
    }
}

fn settings() -> impl Iterator<Item = &'static Setting> {
    sections().iter().flat_map(|s| &s.settings)
}

fn is_list(section: &str) -> bool {
    sections().iter().any(|s| s.name == section && s.is_list)
}

/// The setting that `section, key` or `section, index, key` names.
fn find(parts: &[&str]) -> Option<(&'static Setting, Option<usize>)> {
    let (section, index, key) = match parts {
        [section, key] => (section, None, key),
        [section, index, key] => (section, Some(index.parse().ok()?), key),
        _ => return None,
    };
    let section = sections().iter().find(|s| s.name == *section && s.is_list == index.is_some())?;
    Some((section.settings.iter().find(|s| s.key == *key)?, index))
}

fn wants(section: &Section) -> String {
    match section.is_list {
        true => format!("`{0}` is a list of blocks: begin each with [[{0}]]", section.name),
        false => format!("`{0}` is a section: begin it with [{0}]", section.name),
    }
}

fn unknown_section(name: &str) -> String {
    let (nearest, _) = nearest(sections().iter().map(|s| s.name.to_owned()), name);
    format!("no section is called `{name}`; the nearest is `{nearest}`")
}

/// A key by its exact name in another section is nearer than any other.
fn unknown_key(section: &str, key: &str, shown: impl Fn(&Setting) -> String) -> String {
    let name = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    let elsewhere = settings().find(|s| s.key == key).map(&shown);
    let nearest = elsewhere.unwrap_or_else(|| nearest(settings().map(&shown), &name).0);
    format!("no setting is called `{name}`; the nearest is `{nearest}`")
}

fn nearest(known: impl Iterator<Item = String>, name: &str) -> (String, f64) {
    known
        .map(|k| (strsim::normalized_damerau_levenshtein(&k, name), k))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or((String::new(), 0.0), |(similarity, k)| (k, similarity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SlowPolicy;

    /// Loads from a file called `f.toml` with this text, these variables and these flags.
    fn from(
        file: &str,
        environment: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<(Config, Vec<String>), ConfigError> {
        let mut sources = Sources::default();
        sources.add_file("f.toml", file);
        environment.iter().for_each(|(name, value)| sources.add_variable(name, value));
        flags.iter().for_each(|(key, value)| sources.add_flag(key, value));
        sources.finish()
    }

    /// What is said about a configuration that is wrong.
    #[track_caller]
    fn said(file: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> String {
        from(file, environment, flags).expect_err("this configuration is wrong").to_string()
    }

    #[test]
    fn an_empty_configuration_is_the_default() {
        assert_eq!(from("", &[], &[]).unwrap(), (Config::default(), Vec::new()));
    }

    #[test]
    fn a_list_is_an_array_in_the_file_and_comma_separated_elsewhere() {
        let file = "[[listen]]\nallowed_origins = [\"https://a.example\", \"https://*.b.example\"]\n";
        let expected = vec!["https://a.example".to_owned(), "https://*.b.example".to_owned()];
        assert_eq!(from(file, &[], &[]).unwrap().0.listen[0].allowed_origins, expected);
        let text = " https://a.example , https://*.b.example,";
        let by_variable = from("", &[("FANWIRE_LISTEN__0__ALLOWED_ORIGINS", text)], &[]).unwrap().0;
        assert_eq!(by_variable.listen[0].allowed_origins, expected);
        let by_flag = from(file, &[], &[("listen.0.allowed_origins", "")]).unwrap().0;
        assert_eq!(by_flag.listen[0].allowed_origins, Vec::<String>::new());
        for wrong in ["\"*\"", "[\"example.com\"]", "[1]", "[[\"*\"]]"] {
            let said = said(&format!("[[listen]]\nallowed_origins = {wrong}\n"), &[], &[]);
            assert!(
                said.starts_with("f.toml:2: listen.0.allowed_origins = ") && said.contains("a list, each an origin"),
                "{said}"
            );
        }
        let deep = "[".repeat(5000);
        assert!(said(&format!("[[listen]]\nallowed_origins = {deep}\n"), &[], &[]).contains("not TOML"));
    }

    #[test]
    fn without_a_file_every_origin_may_connect_and_that_is_said_once() {
        let without = |environment: &[(&str, &str)]| {
            let mut sources = Sources::default();
            environment.iter().for_each(|(name, value)| sources.add_variable(name, value));
            sources.finish().unwrap()
        };
        let (config, warnings) = without(&[("FANWIRE_LISTEN__1__ADDRESS", "127.0.0.1:1")]);
        assert!(config.listen.iter().all(|listen| listen.allowed_origins == ["*"]));
        assert!(warnings.len() == 1 && warnings[0].contains("every Origin"), "{warnings:?}");
        let (config, warnings) = without(&[("FANWIRE_LISTEN__0__ALLOWED_ORIGINS", "")]);
        assert!(config.listen[0].allowed_origins.is_empty() && warnings.is_empty(), "who says it is heard");
        let (config, warnings) = from("", &[], &[]).unwrap();
        assert!(config.listen[0].allowed_origins.is_empty() && warnings.is_empty(), "a file without the key");
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_defaults() {
        let file = "[shards]\ncount = 2\ntick_interval_us = 2\nqueue_items_max = 200\n";
        let environment = [("FANWIRE_SHARDS__COUNT", "3"), ("FANWIRE_SHARDS__TICK_INTERVAL_US", "3")];
        let (config, _) = from(file, &environment, &[("shards.count", "4"), ("shards.count", "5")]).unwrap();
        assert_eq!((config.shards.count, config.shards.tick_interval_us), (5, 3));
        assert_eq!((config.shards.queue_items_max, config.shards.listen_backlog), (200, 65_535));
    }

    #[test]
    fn every_type_is_read_from_text() {
        let environment = [
            ("FANWIRE_SLOW__POLICY", "disconnect"),
            ("FANWIRE_WEBSOCKET__DEFLATE", "true"),
            ("FANWIRE_DRAIN__DRAIN_CLOSE_CODE", "1012"),
            ("FANWIRE_LIMITS__TOPICS_MAX", "2_000"),
            ("FANWIRE_LOG__LEVEL", "fanwire::accept=debug,info"),
            ("FANWIRE_SHARDS__RING_FEATURES", "6.1"),
        ];
        let (config, _) = from("", &environment, &[]).unwrap();
        assert_eq!(config.slow.policy, SlowPolicy::Disconnect);
        assert!(config.websocket.deflate);
        assert_eq!((config.drain.drain_close_code, config.limits.topics_max), (1012, 2000));
        assert_eq!(config.log.level, "fanwire::accept=debug,info");
        assert_eq!(config.shards.ring_features, "6.1");
    }

    #[test]
    fn an_unknown_key_is_an_error_with_the_nearest_one_and_its_place() {
        assert_eq!(
            said("[shards]\ncount = 1\ntick_intervall_us = 5\n", &[], &[]),
            "f.toml:3: no setting is called `shards.tick_intervall_us`; the nearest is `shards.tick_interval_us`"
        );
        assert_eq!(
            said("[shards]\ndeflate = true\n", &[], &[]),
            "f.toml:2: no setting is called `shards.deflate`; the nearest is `websocket.deflate`"
        );
        assert_eq!(
            said("\n[shard]\ncount = 1\n", &[], &[]),
            "f.toml:2: no section is called `shard`; the nearest is `shards`"
        );
        assert_eq!(
            said("count = 1\n", &[], &[]),
            "f.toml:1: no setting is called `count`; the nearest is `shards.count`"
        );
        assert_eq!(
            said("", &[("FANWIRE_SHARD__COUNT", "1")], &[]),
            "FANWIRE_SHARD__COUNT: no setting has this name; the nearest is FANWIRE_SHARDS__COUNT"
        );
        assert_eq!(
            said("", &[], &[("shards.cuont", "1")]),
            "command line: no setting is called `shards.cuont`; the nearest is `shards.count`"
        );
        assert!(said("[[listen]]\nadress = \"\"\n", &[], &[]).contains("`listen.address`"));
        assert!(said("dev = true\n", &[], &[]).starts_with("f.toml:1: no setting is called `dev`"));
    }

    #[test]
    fn a_value_that_is_not_allowed_is_named_with_what_is() {
        assert_eq!(
            said("[shards]\n\ncount = \"two\"\n", &[], &[]),
            "f.toml:3: shards.count = \"two\" is not allowed: it must be a whole number, 0 to 1024"
        );
        assert_eq!(
            said("", &[("FANWIRE_DRAIN__DRAIN_CLOSE_CODE", "1002")], &[]),
            "FANWIRE_DRAIN__DRAIN_CLOSE_CODE: drain.drain_close_code = 1002 is not allowed: it must be 1000 to 1001, 1012 to 1013 or 3000 to 4999"
        );
        assert_eq!(
            said("", &[], &[("shards.ring_features", "5.15")]),
            "command line: shards.ring_features = \"5.15\" is not allowed: it must be `auto` or `6.1`"
        );
        assert_eq!(
            said("shards.ring_features = 6.1\n", &[], &[]),
            "f.toml:1: shards.ring_features = 6.1 is not allowed: it must be text in quotes, `auto` or `6.1`"
        );
        for (key, value) in [
            ("shards.count", "-1"),
            ("shards.count", "99999999999999999999"),
            ("shards.tick_interval_us", "1000001"),
            ("websocket.deflate_level", "10"),
            ("websocket.deflate", "yes"),
            ("slow.policy", "wait"),
            ("publish.grpc_address", "localhost:1"),
            ("listen.0.address", "127.0.0.1"),
            ("listen.0.gpush_path", "ws"),
            ("log.level", "inof"),
            ("log.level", "fanwire=loud"),
            ("log.format", "xml"),
        ] {
            let said = said("", &[], &[(key, value)]);
            assert!(said.starts_with(&format!("command line: {key} = ")) && said.contains("it must be"), "{said}");
        }
        for (line, shown) in [
            ("shards.count = 1.5", "1.5"),
            ("shards.count = 99999999999999999999", "inf"),
            ("shards.pin = 1", "1"),
            ("shards.count = [1]", "[1]"),
            ("log.level = 1979-05-27", "1979-05-27"),
        ] {
            let said = said(line, &[], &[]);
            assert!(said.starts_with("f.toml:1: ") && said.contains(&format!("= {shown} is not allowed")), "{said}");
        }
    }

    #[test]
    fn all_errors_are_told_at_once_in_order() {
        let said = said("[shards]\nx = 1\ncount = -1\n[a]\n", &[("FANWIRE_LOG__X", "")], &[("y", "")]);
        let places: Vec<_> = said.lines().map(|l| l.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["f.toml:2", "f.toml:3", "f.toml:4", "FANWIRE_LOG__X", "command line"]);
    }

    #[test]
    fn what_is_not_toml_is_an_error_with_its_line() {
        assert!(said("[shards]\ncount 2\n", &[], &[]).starts_with("f.toml:2: this is not TOML: "));
        assert!(
            said("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", &[], &[]).starts_with("f.toml:3: this is not TOML: ")
        );
        assert!(said("shards = 2\n", &[], &[]).ends_with("`shards` is a section: begin it with [shards]"));
        assert!(said("[listen]\n", &[], &[]).ends_with("`listen` is a list of blocks: begin each with [[listen]]"));
        assert!(said("listen = [1]\n", &[], &[]).starts_with("f.toml:1: `listen` is a list"));
    }

    #[test]
    fn blocks_of_a_list_come_from_the_file_or_are_added_one_after_another() {
        let addresses = |config: &Config| config.listen.iter().map(|l| l.address.clone()).collect::<Vec<_>>();
        let file =
            "[[listen]]\naddress = \"127.0.0.1:1\"\ngpush_path = \"/a\"\n[[listen]]\naddress = \"127.0.0.1:2\"\n";
        let (config, _) =
            from(file, &[("FANWIRE_LISTEN__2__ADDRESS", "127.0.0.1:3")], &[("listen.0.address", "127.0.0.1:4")])
                .unwrap();
        assert_eq!(addresses(&config), ["127.0.0.1:4", "127.0.0.1:2", "127.0.0.1:3"]);
        assert_eq!(config.listen[0].gpush_path, "/a");
        let (config, _) = from("", &[("FANWIRE_LISTEN__0__ADDRESS", "[::1]:5")], &[]).unwrap();
        assert_eq!(addresses(&config), ["[::1]:5"]);
        let said_of_a_gap = said("", &[("FANWIRE_LISTEN__2__ADDRESS", "127.0.0.1:3")], &[]);
        assert!(said_of_a_gap.starts_with("FANWIRE_LISTEN__2__ADDRESS: listen.2.address is block 2 of a list of 1"));
        assert!(said("listen = []\n", &[], &[]).contains("give at least one"));
        assert!(said("", &[], &[("listen.address", "127.0.0.1:1")]).contains("`listen.0.address`"));
    }

    #[test]
    fn a_list_has_a_bound() {
        let blocks = |n: usize| {
            let of = |port| format!("[[listen]]\naddress = \"127.0.0.1:{port}\"\n");
            (1..=n).map(of).collect::<String>()
        };
        assert_eq!(from(&blocks(BLOCKS_MAX), &[], &[]).unwrap().0.listen.len(), BLOCKS_MAX);
        assert!(said(&blocks(BLOCKS_MAX + 1), &[], &[]).contains("too many"));
        let over = [("listen.64.address", "127.0.0.1:9")];
        assert!(said(&blocks(BLOCKS_MAX), &[], &over).starts_with("command line: listen.64.address is block 64"));
    }

    #[test]
    fn what_does_not_fit_together_has_the_place_of_its_key() {
        let said = said("[limits]\nmessage_bytes_max = 2_000_000\n[slow]\n\npending_bytes_max = 2_000_000\n", &[], &[]);
        assert!(said.starts_with("f.toml:5: slow.pending_bytes_max = 2000000 is less than"), "{said}");
    }

    #[test]
    fn variables_of_others_are_left_alone_but_a_slip_is_not() {
        let of_kubernetes = [("FANWIRE_PORT_9992_TCP", "tcp://10.0.0.1:9992"), ("FANWIRE_SERVICE_HOST", "10.0.0.1")];
        assert_eq!(from("", &of_kubernetes, &[]).unwrap().1, Vec::<String>::new());
        let (_, warnings) = from("", &[("FANWIRE_FLAVOUR", "mint")], &[]).unwrap();
        assert!(warnings[0].starts_with("FANWIRE_FLAVOUR is not a setting"), "{warnings:?}");
        assert!(said("", &[("FANWIRE_SHARDS_COUNT", "2")], &[]).ends_with("the nearest is FANWIRE_SHARDS__COUNT"));
    }
}
