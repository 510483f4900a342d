//! What was found, and what to do about it: one line for whoever reads, one object for a program.

use serde::Serialize;
use std::fmt::Write;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works; with the fix it is faster or safer.
    Better,
    /// It could not be seen.
    Unseen,
    /// The connections would not come up.
    Stops,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Better => "better",
            Verdict::Unseen => "unseen",
            Verdict::Stops => "STOPS",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was looked at.
    pub what: String,
    /// What is there.
    pub found: String,
    /// What there should be.
    pub wanted: String,
    /// What it is for, and what happens without.
    pub why: String,
    /// What to paste, or to write where; `None` if nothing is to be done.
    pub fix: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: &str, found: impl Into<String>, wanted: impl Into<String>, why: impl Into<String>) -> Finding {
        let (found, wanted, why) = (found.into(), wanted.into(), why.into());
        Finding { verdict: Verdict::Ok, what: what.to_owned(), found, wanted, why, fix: None }
    }

    /// Not as it should be.
    #[must_use]
    pub fn but(self, verdict: Verdict, fix: impl Into<String>) -> Finding {
        Finding { verdict, fix: Some(fix.into()), ..self }
    }

    /// [`Finding::but`] if `bad`.
    #[must_use]
    pub fn but_if(self, bad: bool, verdict: Verdict, fix: impl Into<String>) -> Finding {
        if bad { self.but(verdict, fix) } else { self }
    }
}

/// All of them as text, and the sum in the last line.
pub fn render(connections: u64, findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding { verdict, what, found, wanted, why, fix } = finding;
        let _ = writeln!(text, "{:<7}{what}: {found} (wanted: {wanted})", verdict.word());
        let _ = writeln!(text, "       why  {why}");
        if let Some(fix) = fix {
            let _ = writeln!(text, "       fix  {}", fix.replace('\n', "\n            "));
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (stops, better, unseen) = (count(Verdict::Stops), count(Verdict::Better), count(Verdict::Unseen));
    let _ = match stops {
        0 => writeln!(
            text,
            "\nNothing seen here stops {connections} connections; {better} would be better otherwise, {unseen} unseen."
        ),
        n => writeln!(
            text,
            "\n{n} of these would stop {connections} connections (STOPS, above: each with its fix); {better} would be better \
             otherwise, {unseen} unseen."
        ),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_stands_with_its_fix_and_is_counted_at_the_end() {
        let fine = Finding::ok("a", "1", "1", "because");
        let bad = Finding::ok("b", "1", "2", "otherwise nothing").but(Verdict::Stops, "do this\nthen that");
        let text = render(7, &[fine, bad]);
        assert!(text.starts_with("ok     a: 1 (wanted: 1)\n       why  because\nSTOPS  b: 1 (wanted: 2)\n"), "{text}");
        assert!(text.contains("       fix  do this\n            then that\n"), "{text}");
        assert!(text.contains("1 of these would stop 7 connections"), "{text}");
    }
}
