//! Bearer tokens: who may publish, and look at `/metrics`.
//!
//! Compared in constant time: whatever is given, every token is compared over its whole length, so that the time an answer
//! takes says nothing about how much of a guess was right.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use subtle::{Choice, ConstantTimeEq};

/// Shorter ones could be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// Longest token.
const TOKEN_BYTES_MAX: usize = 512;
/// Most tokens in a file: each costs its length in comparison with every request.
const TOKENS_MAX: usize = 256;
/// Largest file, comments included.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is wrong with a token file.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// Make it readable.
    #[error("{key} {} can't be read: {error}; correct the path, or let this user read the file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The setting that names it.
        key: &'static str,
        /// Why.
        error: io::Error,
    },
    /// Put a token in.
    #[error("{key} {} has no token in it: put at least one, on a line of its own", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The setting that names it.
        key: &'static str,
    },
    /// Change this line.
    #[error(
        "{key} {}, line {line}: a token has {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable ASCII characters without spaces",
        path.display()
    )]
    BadToken {
        /// The file.
        path: PathBuf,
        /// The setting that names it.
        key: &'static str,
        /// Counted from 1. The token itself stays out of logs.
        line: usize,
    },
    /// Shorten it.
    #[error("{key} {} has more than {TOKENS_MAX} tokens or {FILE_BYTES_MAX} bytes: shorten it", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// The setting that names it.
        key: &'static str,
    },
}

/// The tokens in force; none means that nobody is asked for one.
pub struct Tokens {
    /// The setting, and the file it names.
    file: Option<(&'static str, PathBuf)>,
    tokens: RwLock<Vec<Box<[u8]>>>,
    /// Keys of Centrifugo's server API, which open that and nothing else.
    api_keys: Option<Box<Tokens>>,
}

impl Tokens {
    /// Asks nobody for anything.
    pub fn none() -> Tokens {
        Tokens { file: None, tokens: RwLock::new(Vec::new()), api_keys: None }
    }

    /// Those of `publish.tokens_file`; none if it is the empty string.
    ///
    /// # Errors
    /// The file can't be read, has no token, or a bad one.
    pub fn load(file: &str) -> Result<Tokens, TokensError> {
        Tokens::load_as("publish.tokens_file", file)
    }

    /// As [`Tokens::load`], of the setting `key`.
    ///
    /// # Errors
    /// The file can't be read, has no token, or a bad one.
    pub fn load_as(key: &'static str, file: &str) -> Result<Tokens, TokensError> {
        if file.is_empty() {
            return Ok(Tokens::none());
        }
        let tokens = read(key, Path::new(file))?;
        Ok(Tokens { file: Some((key, file.into())), tokens: RwLock::new(tokens), api_keys: None })
    }

    /// With `keys` for Centrifugo's server API, if there is a file of them; otherwise the tokens open it as well.
    pub fn with_api_keys(self, keys: Tokens) -> Tokens {
        Tokens { api_keys: keys.required().then(|| Box::new(keys)), ..self }
    }

    /// The keys of Centrifugo's server API, if it has its own.
    pub fn api_keys(&self) -> Option<&Tokens> {
        self.api_keys.as_deref()
    }

    /// Whether a token is asked for.
    pub fn required(&self) -> bool {
        self.file.is_some()
    }

    /// The first of the file, for where this side is the one that shows it.
    pub fn first(&self) -> Option<String> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        tokens.first().map(|token| String::from_utf8_lossy(token).into_owned())
    }

    /// Reads the file again, on SIGHUP. What is under way goes on; the next request needs one of the new tokens. Says in the log
    /// what came of it: a bad file keeps the old tokens in force.
    pub fn reload(&self) {
        if let Some(keys) = &self.api_keys {
            keys.reload();
        }
        let Some((key, file)) = &self.file else { return };
        match read(key, file) {
            Ok(tokens) => {
                tracing::info!(file = %file.display(), tokens = tokens.len(), "tokens read again");
                *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
            }
            Err(error) => tracing::error!("{error}; the old tokens stay in force"),
        }
    }

    /// Whether `authorization`, the value of the header or metadata of that name, carries a token in force, or none is asked for.
    /// Costs the length of all tokens together.
    pub fn allow(&self, authorization: Option<&[u8]>) -> bool {
        if !self.required() {
            return true;
        }
        authorization.and_then(bearer).is_some_and(|given| self.holds(given))
    }

    /// Whether `given` is a token in force.
    pub fn holds(&self, given: &[u8]) -> bool {
        if given.len() > TOKEN_BYTES_MAX {
            return false;
        }
        // Padded, so that each token is compared over its own length, however long the guess.
        let mut padded = [0; TOKEN_BYTES_MAX];
        padded[..given.len()].copy_from_slice(given);
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let found = tokens.iter().fold(Choice::from(0), |found, token| {
            found | (padded[..token.len()].ct_eq(token) & given.len().ct_eq(&token.len()))
        });
        found.into()
    }
}

/// The token in `Bearer TOKEN` (RFC 6750 §2.1; the scheme's case doesn't matter, RFC 9110 §11.1).
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn read(key: &'static str, path: &Path) -> Result<Vec<Box<[u8]>>, TokensError> {
    let file = || path.to_owned();
    let unreadable = |error| TokensError::Unreadable { path: file(), key, error };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(TokensError::TooMany { path: file(), key });
    }
    let text = std::fs::read(path).map_err(unreadable)?;
    let mut tokens: Vec<Box<[u8]>> = Vec::new();
    for (i, line) in text.split(|b| *b == b'\n').enumerate() {
        let token = line.trim_ascii();
        if token.is_empty() || token.starts_with(b"#") {
            continue;
        }
        if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
            return Err(TokensError::BadToken { path: file(), key, line: i + 1 });
        }
        if tokens.len() == TOKENS_MAX {
            return Err(TokensError::TooMany { path: file(), key });
        }
        tokens.push(token.into());
    }
    if tokens.is_empty() {
        return Err(TokensError::Empty { path: file(), key });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of its own for each test, gone with it.
    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> File {
            let path = std::env::temp_dir().join(format!("fanwire-tokens-{name}-{}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            File(path)
        }

        fn load(&self) -> Result<Tokens, TokensError> {
            Tokens::load(self.0.to_str().unwrap())
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn one_of_the_tokens_is_let_in_and_nothing_near_it() {
        let file = File::new("let-in", "# for the shop\n  first-token-0123456 \r\n\nsecond-token-012345\n");
        let tokens = file.load().unwrap();
        for good in ["Bearer first-token-0123456", "bearer second-token-012345", "Bearer  first-token-0123456 "] {
            assert!(tokens.allow(Some(good.as_bytes())), "{good}");
        }
        let long = format!("Bearer {}", "x".repeat(TOKEN_BYTES_MAX + 1));
        for bad in [
            "Bearer first-token-012345",
            "Bearer first-token-01234567",
            "Bearer first-token-0123456\0",
            "Bearer First-token-0123456",
            "Bearer # for the shop",
            "Bearer ",
            "Bearer",
            "first-token-0123456",
            "Basic first-token-0123456",
            "",
            &long,
        ] {
            assert!(!tokens.allow(Some(bad.as_bytes())), "{bad}");
        }
        assert!(!tokens.allow(None));
    }

    #[test]
    fn without_a_file_nobody_is_asked() {
        let tokens = Tokens::load("").unwrap();
        assert!(!tokens.required() && tokens.allow(None));
    }

    #[test]
    fn a_bad_file_is_named_and_a_bad_token_is_not() {
        let bad = |name, text: &str| File::new(name, text).load().err().map(|e| e.to_string()).unwrap();
        assert!(bad("empty", "# nothing\n\n").contains("fanwire-tokens-empty"));
        let short = bad("short", "long-enough-token-0\nfifteen-chars-x\n");
        assert!(short.contains("line 2") && !short.contains("fifteen"), "{short}");
        assert!(bad("space", "sixteen chars and more\n").contains("line 1"));
        assert!(bad("many", &"0123456789abcdef\n".repeat(TOKENS_MAX + 1)).contains("more than 256"));
        assert!(Tokens::load("/nonexistent/tokens").err().unwrap().to_string().contains("/nonexistent/tokens"));
    }

    #[test]
    fn a_reload_takes_the_new_tokens_and_a_bad_file_keeps_the_old() {
        let file = File::new("reload", "old-token-01234567\n");
        let tokens = file.load().unwrap();
        let [old, new]: [Option<&[u8]>; 2] = [Some(b"Bearer old-token-01234567"), Some(b"Bearer new-token-01234567")];

        std::fs::write(&file.0, "short\n").unwrap();
        tokens.reload();
        assert!(tokens.allow(old) && !tokens.allow(new));

        std::fs::write(&file.0, "new-token-01234567\n").unwrap();
        tokens.reload();
        assert!(!tokens.allow(old) && tokens.allow(new));
    }
}
