//! Entry points for fuzzers: any bytes in, no panic, and what parses survives being written and read again.
//!
//! They assert instead of answering; that is what a fuzzer looks for.

use super::{
    CLIENT_HELLO_BYTES, Chunk, ClientHello, ClientOption, ExportNameReply, OPTION_HEADER_BYTES,
    OPTION_REPLY_HEADER_BYTES, OptionHeader, OptionReply, OptionReplyHeader, ReplyHeader, ReplyTo, Request,
    SERVER_HELLO_BYTES, ServerHello, StatusPayload, Style, encode_simple_reply, reply_header_len,
};
use bytes::Bytes;

/// A client's side of the negotiation: its flags, then options one after the other.
pub fn fuzz_options(bytes: &[u8]) {
    let Some((hello, mut rest)) = bytes.split_first_chunk::<CLIENT_HELLO_BYTES>() else { return };
    let mut again = Vec::new();
    ClientHello::parse(hello).encode(&mut again);
    assert_eq!(again, hello);
    while let Some((header, after)) = rest.split_first_chunk::<OPTION_HEADER_BYTES>() {
        let Ok(header) = OptionHeader::parse(header) else { return };
        let Ok(len) = header.data_len() else { return };
        let Some((data, after)) = after.split_at_checked(len) else { return };
        rest = after;
        let Ok(option) = ClientOption::parse(header.code, data) else { continue };
        let mut again = Vec::new();
        if let Err(e) = option.encode(&mut again) {
            panic!("{option:?} was read and cannot be written: {e}");
        }
        let data = again.get(OPTION_HEADER_BYTES..).unwrap_or_default();
        assert_eq!(ClientOption::parse(header.code, data), Ok(option));
    }
}

/// A server's side of the negotiation: its greeting, then replies one after the other.
pub fn fuzz_option_replies(bytes: &[u8]) {
    let Some((hello, mut rest)) = bytes.split_first_chunk::<SERVER_HELLO_BYTES>() else { return };
    if let Ok(parsed) = ServerHello::parse(hello) {
        let mut again = Vec::new();
        parsed.encode(&mut again);
        assert_eq!(again, hello);
    }
    if let Some(reply) = rest.first_chunk::<{ ExportNameReply::BYTES }>()
        && let Ok(parsed) = ExportNameReply::parse(reply)
    {
        let mut again = Vec::new();
        parsed.encode(true, &mut again);
        assert_eq!(again, reply);
    }
    while let Some((header, after)) = rest.split_first_chunk::<OPTION_REPLY_HEADER_BYTES>() {
        let Ok(header) = OptionReplyHeader::parse(header) else { return };
        let Ok(len) = header.data_len() else { return };
        let Some((data, after)) = after.split_at_checked(len) else { return };
        rest = after;
        let Ok(reply) = OptionReply::parse(header.kind, data) else { continue };
        let mut again = Vec::new();
        if let Err(e) = reply.encode(header.option, &mut again) {
            // Replacing what is not UTF-8 makes a text longer, so that two of them may no longer fit.
            assert!(matches!(reply, OptionReply::Server { .. }), "{reply:?} was read and cannot be written: {e}");
            continue;
        }
        let data = again.get(OPTION_REPLY_HEADER_BYTES..).unwrap_or_default();
        let second = OptionReply::parse(header.kind, data);
        assert_eq!(second.as_ref().map(OptionReply::kind), Ok(reply.kind()));
        if data.len() == len {
            assert_eq!(second, Ok(reply));
        }
    }
}

/// A client's side of the transmission; the first byte chooses the style.
pub fn fuzz_requests(bytes: &[u8]) {
    let Some((style, mut rest)) = style_of(bytes) else { return };
    while let Some((header, after)) = rest.split_at_checked(style.request_header_bytes()) {
        let Ok(request) = Request::parse(style, header) else { return };
        let mut again = Vec::new();
        assert_eq!(request.encode(style, &mut again), Ok(()));
        assert_eq!(again, header);
        let Ok(len) = usize::try_from(request.payload_len(style)) else { return };
        let Some((payload, after)) = after.split_at_checked(len) else { return };
        rest = after;
        if let Ok(status) = StatusPayload::parse(payload) {
            let mut again = Vec::new();
            status.encode(&mut again);
            assert_eq!(again, payload);
        }
    }
}

/// A server's side of the transmission; the first byte chooses the style.
pub fn fuzz_replies(bytes: &[u8]) {
    const DATA_BYTES_MAX: usize = 4096;
    let Some((style, mut rest)) = style_of(bytes) else { return };
    while let Some(magic) = rest.first_chunk::<4>() {
        let Ok(len) = reply_header_len(style, *magic) else { return };
        let Some((header, after)) = rest.split_at_checked(len) else { return };
        let Ok(parsed) = ReplyHeader::parse(style, header) else {
            panic!("a header of the right length and magic was refused")
        };
        let Ok(len) = parsed.payload_len(DATA_BYTES_MAX) else { return };
        let Some((payload, after)) = after.split_at_checked(len) else { return };
        rest = after;
        let (kind, cookie, offset) = match parsed {
            ReplyHeader::Simple { error, cookie } => {
                let mut again = Vec::new();
                encode_simple_reply(error, cookie, &mut again);
                assert_eq!(again, header);
                continue;
            }
            ReplyHeader::Chunk { kind, cookie, offset, .. } => (kind, cookie, offset.unwrap_or(0)),
        };
        let Ok(chunk) = Chunk::parse(style, kind, Bytes::copy_from_slice(payload)) else { continue };
        let mut again = Vec::new();
        let written = chunk.encode(ReplyTo { style, cookie, offset }, parsed.is_done(), &mut again);
        assert_eq!(written, Ok(()), "{chunk:?} was read and cannot be written");
        if let Chunk::Data { data, .. } = &chunk {
            again.extend_from_slice(data);
        }
        let second = again
            .split_at_checked(header.len())
            .map(|(_, payload)| Chunk::parse(style, chunk.kind(style), Bytes::copy_from_slice(payload)));
        if again.len() == header.len() + payload.len() {
            assert_eq!(second, Some(Ok(chunk)));
        } else {
            // A message was mended, or an unknown error written as a plain one.
            assert!(chunk.kind(style).is_error());
            assert!(matches!(second, Some(Ok(_))), "{second:?}");
        }
    }
}

fn style_of(bytes: &[u8]) -> Option<(Style, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let style = match first % 3 {
        0 => Style::Simple,
        1 => Style::Structured,
        _ => Style::Extended,
    };
    Some((style, rest))
}
