//! RFC 6455 §5.3 and §10.3: client-to-server masking.

use super::{binary, decode};
use fanwire::websocket::frame::{Opcode, write_client_frame};

#[test]
fn section_5_3_any_key_is_undone_and_each_frame_has_its_own() {
    let payload: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let mut input = Vec::new();
    let keys = [[0; 4], [0xFF; 4], [1, 2, 3, 4], [0x80, 0, 0, 0], *b"key!"];
    for key in keys {
        write_client_frame(&mut input, Opcode::Binary, &payload, key);
    }
    assert_eq!(decode(false, &input), (vec![binary(&payload); keys.len()], None));
}

#[test]
fn section_5_3_octet_i_is_masked_with_octet_i_modulo_4_of_the_key() {
    let key = [0xA1, 0xB2, 0xC3, 0xD4];
    for len in 0..100 {
        let mut out = Vec::new();
        write_client_frame(&mut out, Opcode::Binary, &vec![0; len], key);
        let masked = &out[6..];
        assert!(masked.iter().enumerate().all(|(i, byte)| *byte == key[i % 4]), "{len} bytes");
    }
}
