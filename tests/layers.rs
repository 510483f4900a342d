//! Holds `src/` to its layers: uses go down, never up. Reads the `crate::` paths of every file; what stands under `#[cfg(test)]`
//! may use anything. Also: `unsafe` only at the kernel's boundary, nothing left undone, and every file says why it exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Top-level modules and their level. A module may use every lower level.
const LEVELS: &[(&str, u8)] = &[
    ("frame", 0),
    ("causes", 0),
    ("ids", 0),
    ("clock", 0),
    ("config", 0),
    ("demo", 0),
    ("metrics", 0),
    ("sys", 0),
    ("proto", 0),
    ("queue", 1),
    ("socket", 1),
    ("websocket", 1),
    ("dialect", 1),
    ("host", 1),
    ("auth", 2),
    ("topics", 2),
    ("encode", 2),
    ("shard", 2),
    ("ingest", 3),
    ("accept", 3),
    ("tick", 3),
    ("cluster", 3),
    ("gateway", 4),
    ("load", 4),
    ("cli", 4),
    ("sim", 4), // Stands in for the kernel: uses whatever it stands in for, and nobody uses it.
];

/// The uses within one level that are meant: (user, used).
const SIBLINGS: &[(&str, &str)] = &[
    ("frame", "ids"),
    ("frame", "clock"),
    ("clock", "sys"),
    ("metrics", "sys"),
    ("socket", "queue"), // A ring sleeps until the bell of its queues rings.
    ("dialect", "websocket"),
    ("topics", "encode"),
    ("cli", "gateway"),
    ("cli", "load"),
];

/// The uses downwards that are not meant although the levels allow them: (user, used, why).
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("topics", "socket", "topics decides and does no I/O"),
    ("encode", "socket", "encode turns bytes into bytes and does no I/O"),
    ("shard", "sys", "shard decides; the reactor in tick talks to the kernel"),
    ("topics", "sys", "topics gets time as an argument"),
    ("ingest", "socket", "ingest meets the shards only through queues"),
    ("ingest", "shard", "ingest meets the shards only through queues"),
    ("accept", "shard", "accept meets the shards only through queues"),
    ("accept", "topics", "accept knows connections, not topics"),
    ("tick", "topics", "a shard meets the control core only through queues"),
    ("cluster", "socket", "cluster meets the shards only through topics"),
    ("cluster", "shard", "cluster meets the shards only through topics"),
    ("load", "topics", "load is the far side: it shares protocol and ring with the gateway, no more"),
    ("load", "shard", "load is the far side: it shares protocol and ring with the gateway, no more"),
    ("load", "tick", "load is the far side: it shares protocol and ring with the gateway, no more"),
];

fn level(module: &str) -> Option<u8> {
    LEVELS.iter().find(|(name, _)| *name == module).map(|(_, level)| *level)
}

/// Why `user` may not use `used`, if it may not.
fn objection(user: &str, used: &str) -> Option<String> {
    if user == used || user == "main" || user == "lib" {
        return None;
    }
    let Some(from) = level(user) else { return Some(format!("{user} has no level: give it one in tests/layers.rs")) };
    let to = level(used)?; // A macro or an item of the crate root.
    if let Some((.., why)) = FORBIDDEN.iter().find(|(a, b, _)| (*a, *b) == (user, used)) {
        return Some((*why).into());
    }
    if used == "sim" {
        return Some("only tests use the simulation".into());
    }
    let allowed = from > to || SIBLINGS.contains(&(user, used)) || user == "sim";
    (!allowed).then(|| format!("{user} is on level {from}, {used} on level {to}: uses go down"))
}

/// A file's own lines: without comments, and without the items under `#[cfg(test)]`. rustfmt's layout is relied upon: an item ends
/// at the first `}` (or line ending in `;`) indented like the item. Emptied lines are kept, so that numbers stay true.
fn own_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut skipping: Option<usize> = None; // Indentation of the item being left out.
    let mut head = false; // Still at its attributes or first line.
    for line in text.lines() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if let Some(at) = skipping {
            lines.push(String::new());
            if head && code.starts_with("#[") {
                continue;
            }
            let one_line = head && (code.ends_with(';') || code.ends_with('}'));
            head = false;
            let last = indent == at && (code.starts_with('}') || code.ends_with(';'));
            if one_line || last {
                skipping = None;
            }
        } else if code.starts_with("#[cfg(test)]") || code.starts_with("#[cfg(any(test") {
            lines.push(String::new());
            (skipping, head) = (Some(indent), true);
        } else {
            let end = line.match_indices("//").map(|(at, _)| at).find(|&at| !inside_string(line, at));
            lines.push(line[..end.unwrap_or(line.len())].to_string());
        }
    }
    lines
}

/// Whether `at` stands inside a string literal of the line, near enough: an odd number of quotes before it.
fn inside_string(line: &str, at: usize) -> bool {
    let before = line[..at].replace("\\\"", "").replace("'\"'", "");
    before.matches('"').count() % 2 == 1
}

/// The crate's top-level names that `lines` mention, with the line of each first mention.
fn uses(lines: &[String]) -> Vec<(usize, String)> {
    let mut found = BTreeSet::new();
    let joined = lines.join("\n");
    for (start, _) in joined.match_indices("crate::") {
        let before = joined[..start].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let number = joined[..start].matches('\n').count() + 1;
        let rest = &joined[start + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            // `use crate::{a::b, c::{d, e}};`: the names at depth 0.
            let mut depth = 0;
            let mut name = String::new();
            let mut naming = true;
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.insert((number, std::mem::take(&mut name)));
                        naming = true;
                    }
                    c if depth == 0 && naming && (c.is_alphanumeric() || c == '_') => name.push(c),
                    c if depth == 0 && !c.is_whitespace() => naming = false,
                    _ => {}
                }
            }
            found.insert((number, name));
        } else {
            found.insert((number, rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()));
        }
    }
    found.into_iter().filter(|(_, name)| !name.is_empty()).collect()
}

/// `#[cfg(test)] mod x;` makes `x.rs` a file of tests.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_stem().and_then(|s| s.to_str()) {
        Some("mod" | "lib" | "main") => path.parent().unwrap().to_path_buf(),
        _ => path.with_extension(""),
    };
    let mut files = Vec::new();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for pair in lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]") {
        let name = pair[1].trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        if let Some(name) = name.strip_prefix("mod ").and_then(|name| name.strip_suffix(';')) {
            files.extend([folder.join(name).with_extension("rs"), folder.join(name).join("mod.rs")]);
        }
    }
    files
}

/// Every source file, path relative to the crate, and its text.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root).unwrap().to_path_buf(), text));
            }
        }
    }
    files.sort();
    assert!(files.len() > 20, "only {} files found: the test looks in the wrong place", files.len());
    files
}

/// `src/tick/flush.rs` and `src/tick.rs` belong to `tick`.
fn module_of(path: &Path) -> String {
    let part = path.components().nth(1).unwrap().as_os_str().to_str().unwrap();
    part.trim_end_matches(".rs").to_string()
}

fn code_of_all() -> Vec<(PathBuf, Vec<String>)> {
    let sources = sources();
    let tests: BTreeSet<PathBuf> = sources.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    sources.into_iter().filter(|(path, _)| !tests.contains(path)).map(|(path, text)| (path, own_lines(&text))).collect()
}

/// Whether `word` stands in the line as a whole identifier, followed by `next`.
fn has_word(line: &str, word: &str, next: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + word.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_')
            && after.starts_with(next)
            && !inside_string(line, at)
    })
}

fn report(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n  {}\n", found.join("\n  "));
}

#[test]
fn uses_go_down_the_layers() {
    let mut found = Vec::new();
    for (path, lines) in code_of_all() {
        let user = module_of(&path);
        for (number, used) in uses(&lines) {
            if let Some(why) = objection(&user, &used) {
                found.push(format!("{}:{number} uses crate::{used}: {why}", path.display()));
            }
        }
    }
    report("uses against the layers (docs/ARCHITECTURE.md)", found);
}

#[test]
fn unsafe_stands_only_at_the_kernels_boundary() {
    let mut found = Vec::new();
    for (path, lines) in code_of_all() {
        if path == Path::new("src/sys.rs") || path.starts_with("src/socket") {
            continue;
        }
        for (number, line) in lines.iter().enumerate() {
            if has_word(line, "unsafe", "") || line.contains("allow(unsafe_code)") {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    report("unsafe outside src/sys.rs and src/socket", found);
}

#[test]
fn nothing_is_left_undone() {
    let mut found = Vec::new();
    for (path, lines) in code_of_all() {
        for (number, line) in lines.iter().enumerate() {
            if ["todo", "unimplemented", "dbg"].iter().any(|word| has_word(line, word, "!")) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    report("todo!, unimplemented! or dbg! in src", found);
}

#[test]
fn every_file_says_why_it_exists() {
    let bare = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    report("files without a `//!` header", bare.map(|(path, _)| path.display().to_string()).collect());
}

#[test]
fn the_checks_see_what_they_are_for() {
    let text = "\
//! Why. See [`crate::gateway`].
use crate::ids::Slot;
use crate::{
    metrics::{Counter, gateway},
    socket::Ring, // crate::cli
};
#[cfg(test)]
use crate::sim::Dice;

fn f() -> crate::tick::Turn {
    let url = \"ws://crate\"; crate::topics::f(url)
}

#[cfg(test)]
mod tests {
    use crate::load::Load;
    fn g() {
    }
}
fn after() { crate::accept::f() }
";
    let names: Vec<_> = uses(&own_lines(text)).into_iter().map(|(line, name)| format!("{line} {name}")).collect();
    assert_eq!(names, ["2 ids", "3 metrics", "3 socket", "10 tick", "11 topics", "20 accept"]);

    assert_eq!(objection("tick", "shard"), None);
    assert_eq!(objection("topics", "encode"), None);
    assert!(objection("encode", "topics").unwrap().contains("level 2"));
    assert!(objection("shard", "tick").unwrap().contains("uses go down"));
    assert!(objection("ingest", "accept").unwrap().contains("level 3"));
    assert!(objection("tick", "topics").unwrap().contains("queues"));
    assert!(objection("gateway", "sim").unwrap().contains("only tests"));
    assert!(objection("novelty", "ids").unwrap().contains("no level"));

    assert!(has_word("    unsafe { x() }", "unsafe", "") && !has_word("#![deny(unsafe_code)]", "unsafe", ""));
    assert!(has_word("todo!()", "todo", "!") && !has_word("let todo = 1;", "todo", "!"));
    assert_eq!(
        test_files(Path::new("src/tick/mod.rs"), "#[cfg(test)]\nmod model;\n")[0],
        Path::new("src/tick/model.rs")
    );
}
