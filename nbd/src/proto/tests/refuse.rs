//! What is refused, and how.

use crate::proto::*;
use bytes::Bytes;

fn go(name_len: u32, name: &[u8], rest: &[u8]) -> Result<ClientOption, ProtoError> {
    let data = [&name_len.to_be_bytes(), name, rest].concat();
    ClientOption::parse(OptionCode::GO, &data)
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    let huge = ProtoError::TooLong { what: "an export's name", found: u32::MAX.into(), max: 4096 };
    assert_eq!(go(u32::MAX, b"", b""), Err(huge));
    assert!(matches!(go(4096, b"short", b""), Err(ProtoError::Truncated { .. })));
    // 65535 kinds of information said, none there.
    assert!(matches!(go(1, b"a", &[0xff, 0xff]), Err(ProtoError::TooLong { .. })));
    let queries = [&[0, 0, 0, 0][..], &[0xff, 0xff, 0xff, 0xff]].concat();
    let refused = ClientOption::parse(OptionCode::SET_META_CONTEXT, &queries);
    assert!(matches!(refused, Err(ProtoError::TooLong { what: "the list of queries", .. })));
    let header = OptionHeader { code: OptionCode::GO, len_bytes: u32::MAX };
    assert!(matches!(header.data_len(), Err(ProtoError::TooLong { .. })));
    let chunk = |kind, length| ReplyHeader::Chunk { flags: ReplyFlags::NONE, kind, cookie: 0, offset: None, length };
    for kind in [1, 2, 5, 6, 0x8001, 0x8002, 0x8777] {
        let refused = chunk(ChunkKind(kind), u64::MAX).payload_len(4096);
        assert!(matches!(refused, Err(ProtoError::TooLong { .. })), "{kind:#x}");
    }
    assert_eq!(chunk(ChunkKind::OFFSET_DATA, 4104).payload_len(4096), Ok(4104));
    assert!(matches!(chunk(ChunkKind(3), 0).payload_len(0), Err(ProtoError::Unexpected { .. })));
}

#[test]
fn names_are_strings() {
    assert_eq!(go(2, &[0xff, 0xfe], &[0, 0]), Err(ProtoError::NotAString { what: "an export's name" }));
    assert_eq!(go(2, b"a\0", &[0, 0]), Err(ProtoError::NotAString { what: "an export's name" }));
    let long = ClientOption::ExportName("n".repeat(4097));
    assert!(matches!(long.encode(&mut Vec::new()), Err(ProtoError::TooLong { .. })));
    assert!(matches!(ClientOption::parse(OptionCode::EXPORT_NAME, &[b'n'; 4097]), Err(ProtoError::TooLong { .. })));
    assert!(ClientOption::ExportName("a\0".into()).encode(&mut Vec::new()).is_err());
}

#[test]
fn options_without_data_take_none_but_abort_does_not_care() {
    for code in [OptionCode::LIST, OptionCode::STARTTLS, OptionCode::STRUCTURED_REPLY, OptionCode::EXTENDED_HEADERS] {
        assert!(matches!(ClientOption::parse(code, b"x"), Err(ProtoError::Trailing { extra: 1, .. })), "{code:?}");
    }
    assert_eq!(ClientOption::parse(OptionCode::ABORT, b"x"), Ok(ClientOption::Abort));
    assert!(matches!(go(1, b"a", &[0, 0, 9]), Err(ProtoError::Trailing { .. })));
}

#[test]
fn the_old_style_is_told_apart() {
    let mut bytes = [0; SERVER_HELLO_BYTES];
    bytes[..16].copy_from_slice(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53");
    assert_eq!(ServerHello::parse(&bytes), Err(ProtoError::OldStyle));
    bytes[..8].copy_from_slice(b"HTTP/1.1");
    assert!(matches!(ServerHello::parse(&bytes), Err(ProtoError::Magic { .. })));
}

#[test]
fn replies_of_another_style_are_refused() {
    let structured = [0x66, 0x8e, 0x33, 0xef];
    assert!(reply_header_len(Style::Simple, structured).is_err());
    assert!(reply_header_len(Style::Extended, structured).is_err());
    assert!(reply_header_len(Style::Extended, [0x67, 0x44, 0x66, 0x98]).is_err());
    let status = Bytes::from_static(&[0; 24]);
    assert!(Chunk::parse(Style::Structured, ChunkKind::BLOCK_STATUS_EXT, status.clone()).is_err());
    assert!(Chunk::parse(Style::Extended, ChunkKind::BLOCK_STATUS, status).is_err());
}

#[test]
fn chunks_that_say_nothing_are_refused() {
    let parse = |kind, payload: &'static [u8]| Chunk::parse(Style::Structured, kind, Bytes::from_static(payload));
    assert!(parse(ChunkKind::OFFSET_DATA, &[0; 8]).is_err(), "no data");
    assert!(parse(ChunkKind::OFFSET_HOLE, &[0; 12]).is_err(), "a hole of no length");
    assert!(parse(ChunkKind::BLOCK_STATUS, &[0; 4]).is_err(), "no extent");
    assert!(parse(ChunkKind::BLOCK_STATUS, &[0; 12]).is_err(), "an extent of no length");
    assert!(parse(ChunkKind::BLOCK_STATUS, &[1; 13]).is_err(), "half an extent");
    assert!(parse(ChunkKind::ERROR, &[0; 6]).is_err(), "an error that is none");
    assert!(parse(ChunkKind::ERROR, &[0, 0, 0, 5, 0, 9, b'm']).is_err(), "a message longer than the chunk");
    assert!(parse(ChunkKind::ERROR_OFFSET, &[0, 0, 0, 5, 0, 1, b'm']).is_err(), "no offset");
    let to = ReplyTo { style: Style::Structured, cookie: 0, offset: 0 };
    let wide = Chunk::Status { context: 0, extents: vec![Extent { length: 1 << 32, flags: 0 }] };
    assert!(wide.encode(to, true, &mut Vec::new()).is_err());
    let count = Bytes::from([&[0, 0, 0, 1, 0, 0, 0, 2][..], &[1; 16]].concat());
    assert!(Chunk::parse(Style::Extended, ChunkKind::BLOCK_STATUS_EXT, count).is_err(), "the number of extents lies");
}

#[test]
fn an_unknown_error_is_an_error() {
    let payload = Bytes::from_static(&[0, 0, 0, 5, 0, 1, b'm', 9, 9, 9]);
    let parsed = Chunk::parse(Style::Structured, ChunkKind(0x8123), payload);
    assert_eq!(parsed, Ok(Chunk::Error { error: ErrorCode::EIO, message: "m".into() }));
}

#[test]
fn a_message_cannot_play_with_a_terminal() {
    let reply = OptionReply::parse(OptionReplyKind::ERR_UNKNOWN, b"red \x1b[31m\n\xff");
    let message = "red  [31m \u{fffd}".to_string();
    assert_eq!(reply, Ok(OptionReply::Error { kind: OptionReplyKind::ERR_UNKNOWN, message }));
}

#[test]
fn messages_are_cut_between_characters() {
    let message = "ä".repeat(3000);
    let mut out = Vec::new();
    let error = OptionReply::Error { kind: OptionReplyKind::ERR_POLICY, message };
    error.encode(OptionCode::LIST, &mut out).unwrap();
    let text = std::str::from_utf8(&out[OPTION_REPLY_HEADER_BYTES..]).unwrap();
    assert_eq!(text.len(), 4096);
}

#[test]
fn block_sizes_follow_the_rules() {
    let ok = BlockSizes { min_bytes: 4096, preferred_bytes: 65536, max_payload_bytes: 65536 };
    assert!(ok.check().is_ok());
    for bad in [
        BlockSizes { min_bytes: 0, ..ok },
        BlockSizes { min_bytes: 3, ..ok },
        BlockSizes { min_bytes: 1 << 17, preferred_bytes: 1 << 17, max_payload_bytes: 1 << 20 },
        BlockSizes { preferred_bytes: 2048, ..ok },
        BlockSizes { min_bytes: 1, preferred_bytes: 256, ..ok },
        BlockSizes { max_payload_bytes: 4096, ..ok },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}

#[test]
fn errors_keep_their_meaning() {
    for (errno, code) in [(30, ErrorCode::EPERM), (122, ErrorCode::ENOSPC), (5, ErrorCode::EIO), (110, ErrorCode::EIO)]
    {
        assert_eq!(ErrorCode::from_errno(errno), code);
    }
    assert_eq!(ErrorCode::from_errno(0), ErrorCode::EIO, "an error is never success");
    assert_eq!(ErrorCode(4711).errno(), 22);
    for code in [ErrorCode::EPERM, ErrorCode::EINVAL, ErrorCode::EOVERFLOW, ErrorCode::ENOTSUP, ErrorCode::ESHUTDOWN] {
        assert_eq!(ErrorCode::from_errno(code.errno()), code);
    }
}
