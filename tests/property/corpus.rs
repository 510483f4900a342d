//! Replays the fuzz corpus, so that what fuzzing once found stays found.

use super::bodies;
use std::path::Path;

fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files = 0;
    for entry in folder.read_dir().unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        // The test harness shows this only if the body panics: it names the input.
        println!("{}", path.display());
        body(&std::fs::read(&path).unwrap());
        files += 1;
    }
    assert!(files >= 5, "only {files} inputs in {}", folder.display());
}

#[test]
fn every_handshake_of_the_corpus_is_answered() {
    replay("handshake", bodies::handshake);
}

#[test]
fn every_stream_of_the_corpus_decodes_alike_however_it_is_cut() {
    replay("decoder", bodies::decoder);
}

#[test]
fn every_proxy_header_of_the_corpus_is_bounded() {
    replay("proxy", bodies::proxy);
}

#[test]
fn every_command_of_the_corpus_is_bounded() {
    replay("command", bodies::command);
}
