//! RFC 6455 §4: the server's side of the opening handshake, as bytes on the wire.

use fanwire::websocket::handshake::{parse_head, parse_response, upgrade, write_101};

const HEAD_BYTES_MAX: usize = 8192;

/// The response to a request with these lines; `\n` stands for a line's end.
fn answer(request: &str) -> String {
    let request = request.replace('\n', "\r\n");
    let mut out = Vec::new();
    let head = parse_head(request.as_bytes(), HEAD_BYTES_MAX).map(|head| head.expect("a whole head").0);
    match head.as_ref().map_err(Clone::clone).and_then(upgrade) {
        Ok(upgrade) => write_101(&mut out, &upgrade, None, true),
        Err(rejection) => rejection.write(&mut out),
    }
    String::from_utf8(out).unwrap()
}

fn status(request: &str) -> u16 {
    parse_response(answer(request).as_bytes()).unwrap().unwrap().0
}

/// §1.2's request, with one line exchanged or left out.
fn with(name: &str, line: &str) -> String {
    let lines = [
        "GET /chat HTTP/1.1\n",
        "Host: server.example.com\n",
        "Upgrade: websocket\n",
        "Connection: Upgrade\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n",
        "Origin: http://example.com\n",
        "Sec-WebSocket-Protocol: chat, superchat\n",
        "Sec-WebSocket-Version: 13\n",
    ];
    assert!(lines.iter().any(|l| l.starts_with(name)));
    let lines = lines.map(|l| if l.starts_with(name) { line } else { l });
    lines.concat() + "\n"
}

#[test]
fn section_1_3_the_key_is_answered_with_its_hash() {
    let answer = answer(&with("GET", "GET /chat HTTP/1.1\n"));
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
    assert!(answer.contains("\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"));
    assert!(!answer.contains("Sec-WebSocket-Extensions"), "none was offered");
}

#[test]
fn section_4_2_1_1_an_http_1_1_get_or_no_connection() {
    assert_eq!(status(&with("GET", "GET http://server.example.com/chat HTTP/1.1\n")), 101);
    assert_eq!(status(&with("GET", "POST /chat HTTP/1.1\n")), 405);
    assert_eq!(status(&with("GET", "GET /chat HTTP/1.0\n")), 505);
}

#[test]
fn section_4_2_1_2_host_is_required() {
    assert_eq!(status(&with("Host", "")), 400);
}

#[test]
fn section_4_2_1_3_upgrade_must_name_websocket_in_any_case() {
    assert_eq!(status(&with("Upgrade", "Upgrade: WebSocket\n")), 101);
    assert_eq!(status(&with("Upgrade", "Upgrade: h2c\n")), 400);
    assert_eq!(status(&with("Upgrade", "")), 400);
}

#[test]
fn section_4_2_1_4_connection_must_hold_the_token_upgrade_in_any_case() {
    assert_eq!(status(&with("Connection", "Connection: keep-alive, UPGRADE\n")), 101);
    assert_eq!(status(&with("Connection", "Connection: keep-alive\nConnection: upgrade\n")), 101);
    assert_eq!(status(&with("Connection", "Connection: keep-alive\n")), 400);
    assert_eq!(status(&with("Connection", "")), 400);
}

#[test]
fn section_4_2_1_5_the_key_is_16_bytes_in_base64() {
    for key in [
        "",
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZQ==AAAA",
        "dGhlIHNhbXBsZSBub25jZSE=",
        "????????????????????????",
    ] {
        assert_eq!(status(&with("Sec-WebSocket-Key", &format!("Sec-WebSocket-Key: {key}\n"))), 400, "{key}");
    }
    assert_eq!(status(&with("Sec-WebSocket-Key", "")), 400);
}

#[test]
fn section_4_2_2_another_version_is_told_ours() {
    for version in ["8", "0", "14", "13, 8", "thirteen"] {
        let answer = answer(&with("Sec-WebSocket-Version", &format!("Sec-WebSocket-Version: {version}\n")));
        assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
    }
    assert_eq!(status(&with("Sec-WebSocket-Version", "")), 400);
}

#[test]
fn section_4_2_2_a_subprotocol_is_named_only_if_one_was_chosen() {
    let request = with("GET", "GET /chat HTTP/1.1\n").replace('\n', "\r\n");
    let (head, _) = parse_head(request.as_bytes(), HEAD_BYTES_MAX).unwrap().unwrap();
    let upgrade = upgrade(&head).unwrap();
    assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["chat", "superchat"]);
    let mut out = Vec::new();
    write_101(&mut out, &upgrade, Some("superchat"), false);
    assert!(String::from_utf8(out).unwrap().contains("\r\nSec-WebSocket-Protocol: superchat\r\n"));
    assert!(!answer(&with("GET", "GET /chat HTTP/1.1\n")).contains("Sec-WebSocket-Protocol"));
}

#[test]
fn section_9_1_extensions_may_come_in_several_headers_and_unknown_ones_are_ignored() {
    let offers = "Sec-WebSocket-Extensions: foo; bar=\"a,b\"\nSec-WebSocket-Extensions: permessage-deflate\n";
    let answer = answer(&with("Origin", offers));
    let agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert!(answer.contains(&format!("\r\nSec-WebSocket-Extensions: {agreed}\r\n")), "{answer}");
    assert_eq!(answer.matches("Extensions").count(), 1);
}

#[test]
fn rfc_7692_section_7_1_2_1_a_bound_on_the_servers_window_is_promised() {
    for bits in 8..=15 {
        let offer = format!("Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits={bits}\n");
        let promise = format!("; server_max_window_bits={bits}\r\n");
        assert!(answer(&with("Origin", &offer)).contains(&promise), "{bits}");
    }
}

#[test]
fn rfc_7692_section_7_1_an_offer_with_anything_invalid_is_declined() {
    for bad in
        ["; nonsense", "; server_max_window_bits=16", "; server_max_window_bits", "; client_no_context_takeover=1"]
    {
        let offer = format!("Sec-WebSocket-Extensions: permessage-deflate{bad}\n");
        let answer = answer(&with("Origin", &offer));
        assert!(answer.starts_with("HTTP/1.1 101 ") && !answer.contains("Extensions"), "{bad}: {answer}");
    }
}
