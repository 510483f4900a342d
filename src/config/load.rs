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
        let (nearest, similarity) = nearest(settings().map(|s| known(s)), name);
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

/// What to say about a value that is not allowed.
pub(super) fn refusal(key: &str, allowed: &Allowed, value: &toml::Value) -> Option<String> {
    (!allowed.accepts(value)).then(|| format!("{key} = {value} is not allowed: it must be {allowed}"))
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
        DeValue::Array(_) => toml::Value::Array(Vec::new()),
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
