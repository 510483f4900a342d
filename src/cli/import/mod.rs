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
            Ok(keys) => {
                let part = system.part(&keys);
                if keys.iter().all(|k| system.rule(part, &k.path).is_none()) {
                    problems.push(format!("{name}: no key of it is one of {}'s: is it the right file?", system.name));
                }
                parts.push((part, keys));
            }
            Err(problem) => problems.push(problem),
        }
    }
    let mut draft = Draft { sections, problems, ..Draft::new(system, &parts) };
    for (part, keys) in &parts {
        keys.iter().for_each(|found| draft.take(part, found));
    }
    draft.add();
    draft.leave_itself_out();
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

/// Keys by what is said of them, in the order of first mention.
#[derive(Default)]
struct Reasons(Vec<(String, Vec<String>)>);

impl Reasons {
    fn add(&mut self, why: impl Into<String>, origin: String) {
        let why = why.into();
        match self.0.iter_mut().find(|(known, _)| *known == why) {
            Some((_, origins)) => origins.push(origin),
            None => self.0.push((why, vec![origin])),
        }
    }

    fn lines(self) -> Vec<String> {
        self.0.into_iter().map(|(why, origins)| format!("{why}: {}.", origins.join(", "))).collect()
    }
}

struct Draft<'a> {
    system: &'static System,
    sections: &'a [Section],
    parts: &'a [(&'static str, Vec<Found>)],
    lines: BTreeMap<&'static str, Line>,
    /// Keys without a setting: what is said of them → which they are.
    dropped: Reasons,
    others: Reasons,
    remarks: Vec<String>,
    problems: Vec<String>,
}

impl<'a> Draft<'a> {
    fn new(system: &'static System, parts: &'a [(&'static str, Vec<Found>)]) -> Draft<'a> {
        let (dropped, others) = Default::default();
        let (lines, remarks, problems) = Default::default();
        Draft { system, sections: &[], parts, lines, dropped, others, remarks, problems }
    }

    /// Whether a key of theirs is there, and neither `false` nor empty nor 0.
    fn is_on(&self, key: &str) -> bool {
        let on = |value: &Value| match value {
            Value::Boolean(b) => *b,
            Value::String(text) => !matches!(text.as_str(), "" | "false"),
            Value::Integer(n) => *n != 0,
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        // The first file that has it counts, and in it the last one, as for values.
        let of_file = |(_, keys): &'a (&str, Vec<Found>)| keys.iter().rfind(|k| k.path.eq_ignore_ascii_case(key));
        self.parts.iter().find_map(of_file).is_some_and(|k| on(&k.value))
    }

    fn take(&mut self, part: &str, found: &Found) {
        let origin = format!("{} ({})", shown(found), found.place);
        let Some(rule) = self.system.rule(part, &found.path) else { return self.unknown(found, &origin) };
        match &rule.becomes {
            Becomes::Dropped(why) => self.dropped.add(format!("dropped: {why}"), origin),
            Becomes::Decides(how) => self.dropped.add(*how, origin),
            Becomes::Setting { when: Some(key), .. } if !self.is_on(key) => {
                let why = if key.eq_ignore_ascii_case(&found.path) { "empty" } else { "without effect there too" };
                self.dropped.add(format!("dropped: {why} ({key} decides)"), origin);
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
                let again = format!("dropped: {theirs} comes again in this file");
                self.dropped.add(again, line.comments[0].trim_end_matches('.').to_owned());
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
                self.others.add("a comment", origin.to_owned());
            }
            nearest => {
                let hint = nearest.map_or(String::new(), |key| format!(" (was {key} meant?)"));
                self.others.add(format!("{} has no such key{hint}", self.system.name), origin.to_owned());
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
            let is_there = !added.without.is_empty() && self.parts.iter().any(|(part, _)| *part == added.without);
            if is_there || added.when.is_some_and(|key| !self.is_on(key)) || self.lines.contains_key(added.ours) {
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

    /// A logic's list of gateways without the one that is imported along with it: this process is both.
    fn leave_itself_out(&mut self) {
        let port = |line: &Line| Some(line.value.as_str()?.rsplit_once(':')?.1.to_owned());
        let Some(port) = self.lines.get("compat.gopush.gateway_address").and_then(port) else { return };
        let Some(list) = self.lines.get_mut("compat.gopush.gateway_list") else { return };
        let Some(gateways) = list.value.as_array_mut() else { return };
        let is_itself = |gateway: &Value| {
            let address = gateway.as_str().and_then(|text| text.rsplit_once(':'));
            address.is_some_and(|(host, at)| at == port && matches!(host, "localhost" | "127.0.0.1" | "[::1]"))
        };
        if let Some(at) = gateways.iter().position(is_itself) {
            let itself = gateways.remove(at);
            gateways.retain(|gateway| !is_itself(gateway));
            list.comments.push(format!("{itself} is left out: it is this process."));
        }
        if !gateways.is_empty() {
            self.remarks.push(format!(
                "compat.gopush.gateway_list = {}: if one of them is this process, leave it out, or its clients have each push twice",
                list.value
            ));
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
            ("Keys that have no setting:", self.dropped.lines()),
            ("Keys that are not known:", self.others.lines()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections;
    use std::collections::BTreeSet;

    /// Settings that the tables name and this build does not have. Whoever adds one takes it from here.
    const NOT_YET: &[&str] = &[];

    fn from(from: From, files: &[(&str, &str)]) -> Result<Imported, Vec<String>> {
        let files: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        import(from, &files, sections())
    }

    /// The settings it has, as `section.key = value`.
    fn settings(imported: &Imported) -> Vec<String> {
        let mut section = "";
        let mut settings = Vec::new();
        for line in imported.toml.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            match line.strip_prefix('[') {
                Some(name) => section = name.trim_matches(['[', ']']),
                None => settings.push(format!("{section}.{line}")),
            }
        }
        settings
    }

    #[test]
    fn every_setting_the_tables_name_is_there_or_known_to_be_missing() {
        let known: BTreeSet<_> =
            sections().iter().flat_map(|s| &s.settings).map(|s| format!("{}.{}", s.section, s.key)).collect();
        let mut missing = BTreeSet::new();
        for system in [&rules::GPUSH, &rules::GOPUSH] {
            let by_rule = system.rules.iter().filter_map(|rule| match rule.becomes {
                Becomes::Setting { ours, .. } => Some(ours),
                _ => None,
            });
            missing.extend(by_rule.chain(system.added.iter().map(|a| a.ours)).filter(|key| !known.contains(*key)));
        }
        assert_eq!(missing.into_iter().collect::<Vec<_>>(), NOT_YET, "take from NOT_YET what is there now");
    }

    #[test]
    fn keys_become_settings_with_where_they_come_from() {
        let text =
            "[server]\nport = \"9995\"\n[connection]\nTimeOut = 20000000\nWriteRate = 500\nEableEpoller = true\n";
        let imported = from(From::Gpush, &[("socket.toml", text)]).unwrap();
        let settings = settings(&imported);
        for setting in ["listen.address = \"0.0.0.0:9995\"", "gpush.heartbeat_timeout_ms = 20_000_000"] {
            assert!(settings.iter().any(|s| s == setting), "{setting} in {settings:?}");
        }
        for said in [
            "# server.port = \"9995\" (socket.toml:2).\n",
            "# connection.TimeOut = 20000000 (socket.toml:4).\n",
            "without effect there too",
            "always event-driven",
        ] {
            assert!(imported.toml.contains(said), "{said} in\n{}", imported.toml);
        }
    }

    #[test]
    fn the_write_buffer_is_a_tick_only_if_it_is_on() {
        let of = |on: &str| {
            let text = format!("[connection]\nEnableWriteBuffer = {on}\nWriteRate = 500\n");
            let imported = from(From::Gpush, &[("s", &text)]).unwrap();
            settings(&imported).iter().any(|s| s == "shards.tick_interval_us = 500_000")
        };
        assert!(of("true") && of("\"true\"") && !of("false"));
    }

    #[test]
    fn values_out_of_bounds_are_moved_to_the_bound_or_left_out() {
        let of = |ms: &str| {
            let imported = from(From::Gpush, &[("s", &format!("[connection]\nTimeOut = {ms}\n"))]).unwrap();
            let heartbeat = settings(&imported).into_iter().find(|s| s.starts_with("gpush."));
            (heartbeat, imported.toml)
        };
        let (heartbeat, toml) = of("200000000");
        assert_eq!(heartbeat.as_deref(), Some("gpush.heartbeat_timeout_ms = 86_400_000"));
        assert!(toml.contains("200_000_000 is out of bounds"), "{toml}");
        for zero in ["0", "-5"] {
            let (heartbeat, toml) = of(zero);
            assert_eq!(heartbeat, None);
            assert!(toml.contains("the default stands"), "{toml}");
        }
    }

    #[test]
    fn the_last_of_a_name_counts_in_a_file_and_the_first_file_among_files() {
        let has = |imported: &Imported, port: u16| {
            settings(imported).iter().any(|s| *s == format!("listen.address = \"0.0.0.0:{port}\""))
        };
        let imported = from(From::Gpush, &[("a", r#"{"server":{"port":1,"PORT":2}}"#)]).unwrap();
        assert!(has(&imported, 2), "{}", imported.toml);
        let files = [("a", "[server]\nport = 1\n"), ("b", "[server]\nport = 2\n")];
        let imported = from(From::Gpush, &files).unwrap();
        assert!(has(&imported, 1), "{}", imported.toml);
        let said = "server.port = 2 (b:2) is not what server.port = 1 (a:2) says";
        assert!(imported.remarks.iter().any(|r| r.contains(said)), "{:?}", imported.remarks);
    }

    #[test]
    fn comments_as_keys_are_told_from_slips_and_both_are_named() {
        let text = r#"{"wsPort":7777,"端口":"for\nclients","wsHeartbeatIntervall":"60","colour":7}"#;
        let imported = from(From::GoPush, &[("g.json", text)]).unwrap();
        assert!(imported.toml.contains("# - a comment: 端口 = \"for\\nclients\" (g.json:1)."), "{}", imported.toml);
        let slips: Vec<_> = imported.remarks.iter().filter(|r| r.contains("has no key")).collect();
        assert_eq!(slips.len(), 2);
        assert!(slips[0].contains("`wsHeartbeatIntervall` (was wsHeartbeatInterval meant?)"), "{slips:?}");
    }

    #[test]
    fn gateway_and_logic_have_keys_of_one_name_and_are_told_apart() {
        let gateway = ("g.json", r#"{"servicePort": 7788, "mergerWorkerCount": 32}"#);
        let logic = ("l.json", r#"{"servicePort": 7799, "GatewayList": []}"#);
        let imported = from(From::GoPush, &[gateway, logic]).unwrap();
        let at = |key: &str, port: u16| imported.toml.contains(&format!("{key} = \"0.0.0.0:{port}\""));
        assert!(at("gateway_address", 7788) && at("logic_address", 7799), "{}", imported.toml);
    }

    #[test]
    fn a_half_alone_leaves_the_other_where_it_is_and_both_are_not_in_their_own_list() {
        let gateway = ("g.json", r#"{"servicePort": 7788, "wsPort": 7777}"#);
        let list = r#"[{"hostname": "localhost", "port": 7788}, {"hostname": "b", "port": 7788}]"#;
        let logic = format!(r#"{{"servicePort": 7799, "gatewayList": {list}}}"#);
        let of = |files: &[(&str, &str)]| from(From::GoPush, files).unwrap().toml;
        let both = of(&[gateway, ("l.json", &logic)]);
        assert!(both.contains("gateway_list = [\"b:7788\"]") && both.contains("it is this process"), "{both}");
        let alone = of(&[("l.json", &logic)]);
        assert!(alone.contains("gateway_list = [\"localhost:7788\", \"b:7788\"]"), "{alone}");
        for closed in ["connect_address = \"\"", "gateway_address = \"\""] {
            assert!(alone.contains(closed) && !both.contains(closed), "{closed}");
        }
        assert!(of(&[gateway]).contains("logic_address = \"\"") && !both.contains("logic_address = \"\""));
    }

    #[test]
    fn nothing_of_theirs_gets_out_of_its_comment_and_secrets_stay_out() {
        let text = "{\"a\\n[shards]\\ncount = 7\\n#\":\"b\\u0000\\ncount = 8\",
            \"proxyRpc\":{\"password\":\"hunter2\",\"keyPrefix\":\"x\\n[log]\"}}";
        let imported = from(From::Gpush, &[("f\n[drain]", text)]).unwrap();
        assert!(settings(&imported).iter().all(|s| s.starts_with("listen.allowed_origins")), "{}", imported.toml);
        toml::from_str::<toml::Table>(&imported.toml).unwrap();
        assert!(!imported.toml.contains("hunter2"));
    }

    #[test]
    fn all_that_is_malformed_is_told_at_once_with_its_place() {
        let files = [("a.toml", "[server]\nport = true\n[connection]\nTimeOut = 1.5\n"), ("b.json", "{\n\"x\" 1}")];
        let problems = from(From::Gpush, &files).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].starts_with("b.json:2:"), "{problems:?}");
        assert!(problems[1].starts_with("a.toml:2: server.port = true: it must be a port"), "{problems:?}");
        assert!(problems[2].starts_with("a.toml:4: connection.TimeOut = 1.5: it must be a whole"), "{problems:?}");
        let user = from(From::Gpush, &[("u.json", r#"{"proxyRpc":{"username":"a b"}}"#)]).unwrap_err();
        assert!(user[0].contains("it must be at most 64 visible"), "{user:?}");
        let wrong = from(From::Gpush, &[("g.json", r#"{"wsPort":7777}"#)]).unwrap_err();
        assert!(wrong[0].contains("is it the right file?"), "{wrong:?}");
    }

    #[test]
    fn a_setting_that_this_build_lacks_is_a_comment() {
        let files = [("s".to_owned(), "[server]\nport = 1\n".to_owned())];
        let imported = import(From::Gpush, &files, &[]).unwrap();
        assert!(settings(&imported).is_empty(), "{}", imported.toml);
        assert!(imported.toml.contains("# - listen.address = \"0.0.0.0:1\": not yet"), "{}", imported.toml);
        assert!(imported.remarks.iter().any(|r| r.starts_with("listen.address = ")));
    }
}
