//! `fanwire config import`: configuration files of gpush or go-push → a `fanwire.toml`.
//!
//! Every key of theirs is accounted for: it stands above the setting it became, or below with the reason why it has none. What
//! is written is accepted by `fanwire config check`: a value out of bounds is moved to the bound, and says so.

mod read;
mod rules;

use crate::config::{Allowed, Section, Setting, comment, written};
use read::Found;
use rules::{Becomes, Rule, System};
use std::collections::BTreeMap;
use std::fmt::Write;
use toml::Value;

/// Most files of one import.
pub(super) const FILES_MAX: usize = 16;

/// Of a value in a comment.
const SHOWN_CHARS_MAX: usize = 80;

/// Names as like as this are taken for one another.
const SIMILAR: f64 = 0.75;

/// Whose files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum From {
    /// gpush: the TOML files of its socket and its proxy
    Gpush,
    /// go-push: the JSON files of its gateway and its logic
    GoPush,
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Imported {
    /// A `fanwire.toml`.
    pub(super) toml: String,
    /// What the operator should hear about it.
    pub(super) remarks: Vec<String>,
}

/// Reads `files`, each a name and a text, for a build with the settings of `sections`.
///
/// # Errors
/// All that is malformed, each with its place.
pub(super) fn import(from: From, files: &[(String, String)], sections: &[Section]) -> Result<Imported, Vec<String>> {
    let system = match from {
        From::Gpush => &rules::GPUSH,
        From::GoPush => &rules::GOPUSH,
    };
    let (mut parts, mut problems) = (Vec::new(), Vec::new());
    for (name, text) in files {
        match read::keys(name, text) {
            Ok(keys) => parts.push((system.part(&keys), keys)),
            Err(problem) => problems.push(problem),
        }
    }
    let mut draft = Draft { sections, problems, ..Draft::new(system, &parts) };
    for (part, keys) in &parts {
        keys.iter().for_each(|found| draft.take(part, found));
    }
    draft.add();
    if draft.problems.is_empty() { Ok(draft.finish(files)) } else { Err(draft.problems) }
}

impl System {
    /// Which part of the system has a file with these keys.
    fn part(&self, keys: &[Found]) -> &'static str {
        let has = |names: &[&str]| keys.iter().any(|k| names.iter().any(|name| name.eq_ignore_ascii_case(&k.path)));
        self.parts.iter().find(|(_, names)| names.is_empty() || has(names)).map_or("", |(part, _)| part)
    }

    fn rule(&self, part: &str, path: &str) -> Option<&'static Rule> {
        self.rules.iter().find(|r| (r.part.is_empty() || r.part == part) && r.theirs.eq_ignore_ascii_case(path))
    }

    /// The key that `path` may have been meant for.
    fn nearest(&self, path: &str) -> Option<&'static str> {
        let path = path.to_lowercase();
        let likeness = |r: &Rule| strsim::normalized_damerau_levenshtein(&r.theirs.to_lowercase(), &path);
        let nearest = self.rules.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
        (likeness(nearest) >= SIMILAR).then_some(nearest.theirs)
    }
}

/// A setting on its way into the file.
struct Line {
    value: Value,
    /// Of which key in which file; a later one of the same file takes its place, as it does there.
    theirs: &'static str,
    file: String,
    comments: Vec<String>,
}

struct Draft<'a> {
    system: &'static System,
    sections: &'a [Section],
    parts: &'a [(&'static str, Vec<Found>)],
    lines: BTreeMap<&'static str, Line>,
    dropped: Vec<String>,
    later: Vec<String>,
    others: Vec<String>,
    remarks: Vec<String>,
    problems: Vec<String>,
}

impl<'a> Draft<'a> {
    fn new(system: &'static System, parts: &'a [(&'static str, Vec<Found>)]) -> Draft<'a> {
        let (dropped, later, others, remarks, problems) = Default::default();
        Draft { system, sections: &[], parts, lines: BTreeMap::new(), dropped, later, others, remarks, problems }
    }

    /// Whether a key of theirs is there, and neither `false` nor empty nor 0.
    fn is_on(&self, key: &str) -> bool {
        let on = |value: &Value| match value {
            Value::Boolean(b) => *b,
            Value::String(text) => !matches!(text.as_str(), "" | "false"),
            Value::Integer(n) => *n != 0,
            _ => true,
        };
        let all = self.parts.iter().flat_map(|(_, keys)| keys);
        // The last one counts.
        all.filter(|k| k.path.eq_ignore_ascii_case(key)).last().is_some_and(|k| on(&k.value))
    }

    fn take(&mut self, part: &str, found: &Found) {
        let origin = format!("{} ({})", shown(found), found.place);
        let Some(rule) = self.system.rule(part, &found.path) else { return self.unknown(found, &origin) };
        match &rule.becomes {
            Becomes::Dropped(why) => self.dropped.push(format!("{origin}: dropped: {why}.")),
            Becomes::Later(missing) => self.later.push(format!("{origin}: not yet: {missing}.")),
            Becomes::Decides(how) => self.dropped.push(format!("{origin}: {how}.")),
            Becomes::Setting { when: Some(key), .. } if !self.is_on(key) => {
                let why =
                    if key.eq_ignore_ascii_case(&found.path) { "it is empty" } else { "without effect there too" };
                self.dropped.push(format!("{origin}: dropped: {why} ({key})."));
            }
            Becomes::Setting { ours, convert, note, .. } => match convert(&found.value) {
                Ok(value) => self.set(ours, rule.theirs, found, value, &origin, note),
                Err(wanted) => self.problems.push(format!("{}: {}: it must be {wanted}", found.place, shown(found))),
            },
        }
    }

    fn set(&mut self, ours: &'static str, theirs: &'static str, found: &Found, value: Value, origin: &str, note: &str) {
        let file = found.place.rsplit_once(':').map_or("", |(file, _)| file).to_owned();
        let mut comments = vec![format!("{origin}.")];
        comments.extend((!note.is_empty()).then(|| note.to_owned()));
        match self.lines.get_mut(ours) {
            Some(line) if line.theirs == theirs && line.file == file => {
                self.dropped.push(format!("{} dropped: {} comes again and counts.", line.comments[0], found.path));
                *line = Line { value, theirs, file, comments };
            }
            Some(line) if line.value == value => line.comments.push(format!("{origin}.")),
            Some(line) => {
                let remark =
                    format!("{origin} is not what {} says, which counts", line.comments[0].trim_end_matches('.'));
                line.comments.push(format!("{remark}."));
                self.remarks.push(remark);
            }
            None => drop(self.lines.insert(ours, Line { value, theirs, file, comments })),
        }
    }

    /// A key without a rule. In go-push's files, comments are keys.
    fn unknown(&mut self, found: &Found, origin: &str) {
        match self.system.nearest(&found.path) {
            None if found.value.is_str() && self.system.name == rules::GOPUSH.name => {
                self.others.push(format!("{origin}: a comment."));
            }
            nearest => {
                let hint = nearest.map_or(String::new(), |key| format!(" (was {key} meant?)"));
                self.others.push(format!("{origin}: {} has no such key{hint}.", self.system.name));
                self.remarks.push(format!(
                    "{}: {} has no key `{}`{hint}; it is left out",
                    found.place,
                    self.system.name,
                    found.path.escape_debug()
                ));
            }
        }
    }

    /// What no key of theirs says.
    fn add(&mut self) {
        for added in self.system.added {
            if added.when.is_some_and(|key| !self.is_on(key)) || self.lines.contains_key(added.ours) {
                continue;
            }
            let table: toml::Table = toml::from_str(&format!("x = {}", added.value)).expect("a table of ours is TOML");
            let line = Line {
                value: table["x"].clone(),
                theirs: "",
                file: String::new(),
                comments: vec![added.note.to_owned()],
            };
            self.lines.insert(added.ours, line);
            if added.is_warning {
                self.remarks.push(format!("{} = {}: {}", added.ours, added.value, added.note));
            }
        }
    }

    fn finish(mut self, files: &[(String, String)]) -> Imported {
        let names: Vec<_> = files.iter().map(|(name, _)| name.escape_debug().to_string()).collect();
        let mut toml = String::new();
        comment(&mut toml, &format!("Made by `fanwire config import {}` from {}.", self.system.name, names.join(", ")));
        comment(
            &mut toml,
            "Above each setting stands the key it comes from, and what is different. What is not here keeps its default.",
        );
        let mut missing = Vec::new();
        let mut lines = std::mem::take(&mut self.lines);
        for section in self.sections {
            let mut header = Some(());
            for setting in &section.settings {
                let key = format!("{}.{}", setting.section, setting.key);
                let Some(mut line) = lines.remove(key.as_str()) else { continue };
                let value = fitted(setting, &line.value, &mut line.comments);
                if header.take().is_some() {
                    let _ = match section.is_list {
                        true => writeln!(toml, "\n[[{}]]", section.name),
                        false => writeln!(toml, "\n[{}]", section.name),
                    };
                }
                toml.push('\n');
                line.comments.iter().for_each(|text| comment(&mut toml, text));
                if let Some(value) = value {
                    let _ = writeln!(toml, "{} = {}", setting.key, written(&value));
                }
            }
        }
        for (key, line) in lines {
            let text = line.comments.join(" ");
            missing.push(format!("{key} = {}: not yet: this build has no such setting. {text}", line.value));
            self.remarks.push(format!("{key} = {}: not yet: this build has no such setting", line.value));
        }
        for (title, entries) in [
            ("Settings that will be:", missing),
            ("Keys that have no setting yet:", self.later),
            ("Keys that have no setting:", self.dropped),
            ("Keys that are not known:", self.others),
        ] {
            if !entries.is_empty() {
                toml.push('\n');
                comment(&mut toml, title);
                entries.iter().for_each(|text| comment(&mut toml, &format!("- {text}")));
            }
        }
        Imported { toml, remarks: self.remarks }
    }
}

/// `value` as `setting` takes it: moved to the nearest bound, or left out; `comments` tells.
fn fitted(setting: &Setting, value: &Value, comments: &mut Vec<String>) -> Option<Value> {
    if setting.allowed.accepts(value) {
        return Some(value.clone());
    }
    if let (Allowed::Integer(ranges), Value::Integer(n @ 1..)) = (&setting.allowed, value) {
        let n = n.unsigned_abs();
        let bounds = ranges.iter().flat_map(|r| [*r.start(), *r.end()]);
        let nearest = bounds.min_by_key(|bound| bound.abs_diff(n)).and_then(|bound| i64::try_from(bound).ok());
        if let Some(nearest) = nearest.map(Value::Integer) {
            comments.push(format!(
                "{} is out of bounds ({}): the nearest that is not.",
                written(value),
                setting.allowed
            ));
            return Some(nearest);
        }
    }
    comments.push(format!("{value} is not possible here ({}): the default stands.", setting.allowed));
    None
}

/// `key = value` of theirs for a comment, on one line and not too long; no secrets.
fn shown(found: &Found) -> String {
    let name = found.path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let value = match &found.value {
        _ if name == "password" || name == "token" => "…".to_owned(),
        Value::String(text) => format!("\"{}\"", text.escape_debug()),
        other => other.to_string().escape_debug().to_string().replace("\\\"", "\""),
    };
    let mut value = value;
    if let Some((at, _)) = value.char_indices().nth(SHOWN_CHARS_MAX) {
        value.replace_range(at.., "…");
    }
    format!("{} = {value}", found.path.escape_debug())
}
