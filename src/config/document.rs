//! The settings as people read them: a table for the documentation and a file to start from.

use super::{ENVIRONMENT_PREFIX, FILE_DEFAULT, Section, sections};
use std::fmt::Write;

/// Widest comment line of [`default_toml`].
const COLUMNS: usize = 100;

/// A file with every key at its default, each with its comment. Loads without a change.
pub fn default_toml() -> String {
    let mut out = String::new();
    out += "# Every setting at its default. Only what differs needs to be in the file.\n";
    for section in sections() {
        out.push('\n');
        comment(&mut out, &section.doc);
        out += &header(section);
        out.push('\n');
        for setting in &section.settings {
            out.push('\n');
            comment(&mut out, &setting.doc);
            comment(&mut out, &format!("Allowed: {}.", setting.allowed));
            let _ = writeln!(out, "{} = {}", setting.key, setting.default);
        }
    }
    out
}

/// `docs/CONFIGURATION.md`.
pub fn markdown() -> String {
    let mut out = format!(
        "\
# Configuration

<!-- Made from the code: `fanwire config docs > docs/CONFIGURATION.md`. A test fails when this page is stale. -->

Nothing needs to be configured. A value comes from the first of these that has it:

1. a flag: `--set section.key=value` for any setting, and flags of their own for the common ones (`fanwire serve --help`);
2. an environment variable: `{ENVIRONMENT_PREFIX}SECTION__KEY`, with two underscores after the section;
3. the file: the one named by `--config`, or `{FILE_DEFAULT}` in the working directory if it is there;
4. the default.

Blocks of a list are counted from 0: `--set listen.0.address=…`, `{ENVIRONMENT_PREFIX}LISTEN__0__ADDRESS`. The number after the last
one adds a block. `[[listen]]` in a file replaces the default block.

A key that is not known is an error that names the nearest known one and the place (`file:line` or the variable); so is a value that is
not allowed. All of them are told at once, with exit code 78; what doesn't fit together is told when they are mended.
`fanwire config check [FILE]` says both without starting, `fanwire config default` prints a file with every key at its default.
Units are in the names: `_ms`, `_us`, `_bytes`, `_per_s`.

```toml
[[listen]]
address = \"0.0.0.0:9992\"

[shards]
count = 4

[limits]
handshakes_per_s_max = 5000
```

```sh
{ENVIRONMENT_PREFIX}SHARDS__COUNT=2 fanwire serve --set log.level=debug
```
"
    );
    for section in sections() {
        let _ = write!(out, "\n## `{}`\n\n{}\n\n", header(section), section.doc);
        out += "| key | default | allowed | what it is for |\n|---|---|---|---|\n";
        for setting in &section.settings {
            let (allowed, doc) = (setting.allowed.to_string(), &setting.doc);
            let cells = [format!("`{}`", setting.key), format!("`{}`", setting.default), allowed, doc.clone()];
            let _ = writeln!(out, "| {} |", cells.map(|c| c.replace('|', "\\|")).join(" | "));
        }
    }
    out
}

fn header(section: &Section) -> String {
    if section.is_list { format!("[[{}]]", section.name) } else { format!("[{}]", section.name) }
}

/// Appends `text` as comment lines of at most [`COLUMNS`], whatever white space it has.
pub(crate) fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}
