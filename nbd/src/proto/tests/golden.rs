//! Known bytes, written by hand from the protocol's description.

use crate::proto::*;
use bytes::Bytes;

#[track_caller]
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    assert_eq!(digits.len() % 2, 0);
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

#[test]
fn greetings() {
    let server = bytes("4e42444d41474943 49484156454f5054 0003");
    let hello = ServerHello::parse(server.as_slice().try_into().unwrap()).unwrap();
    assert_eq!(hello.flags, HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES);
    let mut out = Vec::new();
    hello.encode(&mut out);
    assert_eq!(out, server);

    let client = ClientHello::parse(&[0, 0, 0, 3]);
    assert_eq!(client.flags, ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES);
}

#[test]
fn the_oldest_option_has_an_answer_without_a_header() {
    let reply = ExportNameReply { size_bytes: 0x1_0000, flags: TransmissionFlags(0x103) };
    let mut out = Vec::new();
    reply.encode(true, &mut out);
    assert_eq!(out, bytes("0000000000010000 0103"));
    assert_eq!(ExportNameReply::parse(out.as_slice().try_into().unwrap()).unwrap(), reply);
    out.clear();
    reply.encode(false, &mut out);
    assert_eq!(out.len(), 10 + 124);
}

#[test]
fn options() {
    let all = [
        (ClientOption::StartTls, "49484156454f5054 00000005 00000000"),
        (ClientOption::ExportName("ab".into()), "49484156454f5054 00000001 00000002 6162"),
        (ClientOption::StructuredReply, "49484156454f5054 00000008 00000000"),
        (ClientOption::ExtendedHeaders, "49484156454f5054 0000000b 00000000"),
        (
            ClientOption::Go(InfoQuery { name: "ab".into(), wanted: vec![InfoKind::BLOCK_SIZE] }),
            "49484156454f5054 00000007 0000000a 00000002 6162 0001 0003",
        ),
        (
            ClientOption::SetMetaContext(MetaQuery { name: "a".into(), queries: vec!["base:allocation".into()] }),
            "49484156454f5054 0000000a 0000001c 00000001 61 00000001 0000000f 626173653a616c6c6f636174696f6e",
        ),
    ];
    for (option, hex) in all {
        let mut out = Vec::new();
        option.encode(&mut out).unwrap();
        assert_eq!(out, bytes(hex), "{option:?}");
        let (header, data) = out.split_first_chunk::<OPTION_HEADER_BYTES>().unwrap();
        let header = OptionHeader::parse(header).unwrap();
        assert_eq!(header.data_len().unwrap(), data.len());
        assert_eq!(ClientOption::parse(header.code, data).unwrap(), option);
    }
}

#[test]
fn option_replies() {
    let sizes = BlockSizes { min_bytes: 1, preferred_bytes: 4096, max_payload_bytes: 32 << 20 };
    let all = [
        (OptionReply::Ack, "0003e889045565a9 00000007 00000001 00000000"),
        (
            OptionReply::Server { name: "ab".into(), description: "c".into() },
            "0003e889045565a9 00000007 00000002 00000007 00000002 6162 63",
        ),
        (
            OptionReply::Info(Info::Export { size_bytes: 0x1234, flags: TransmissionFlags(3) }),
            "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000001234 0003",
        ),
        (OptionReply::Info(Info::Name("n".into())), "0003e889045565a9 00000007 00000003 00000003 0001 6e"),
        (
            OptionReply::Info(Info::BlockSize(sizes)),
            "0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00001000 02000000",
        ),
        (
            OptionReply::MetaContext { id: 9, name: "x:y".into() },
            "0003e889045565a9 00000007 00000004 00000007 00000009 783a79",
        ),
        (
            OptionReply::Error { kind: OptionReplyKind::ERR_TLS_REQD, message: "no".into() },
            "0003e889045565a9 00000007 80000005 00000002 6e6f",
        ),
    ];
    for (reply, hex) in all {
        let mut out = Vec::new();
        reply.encode(OptionCode::GO, &mut out).unwrap();
        assert_eq!(out, bytes(hex), "{reply:?}");
        let (header, data) = out.split_first_chunk::<OPTION_REPLY_HEADER_BYTES>().unwrap();
        let header = OptionReplyHeader::parse(header).unwrap();
        assert_eq!((header.option, header.kind), (OptionCode::GO, reply.kind()));
        assert_eq!(OptionReply::parse(header.kind, data).unwrap(), reply);
    }
}

#[test]
fn requests() {
    let request = Request {
        cookie: 0x0102_0304_0506_0708,
        command: Command::WRITE,
        flags: CommandFlags::FUA,
        offset: 0x1000,
        length: 0x200,
    };
    let mut out = Vec::new();
    request.encode(Style::Structured, &mut out).unwrap();
    assert_eq!(out, bytes("25609513 0001 0001 0102030405060708 0000000000001000 00000200"));
    assert_eq!(Request::parse(Style::Structured, &out).unwrap(), request);
    assert_eq!(request.payload_len(Style::Structured), 0x200);
    assert_eq!(request.payload_len(Style::Extended), 0, "only the flag says so");

    let request = Request { flags: CommandFlags::FUA | CommandFlags::PAYLOAD_LEN, ..request };
    out.clear();
    request.encode(Style::Extended, &mut out).unwrap();
    assert_eq!(out, bytes("21e41c71 0021 0001 0102030405060708 0000000000001000 0000000000000200"));
    assert_eq!(Request::parse(Style::Extended, &out).unwrap(), request);
    assert_eq!(request.payload_len(Style::Extended), 0x200);

    let payload = StatusPayload { length: 1 << 40, contexts: vec![1, 7] };
    out.clear();
    payload.encode(&mut out);
    assert_eq!(out, bytes("0000010000000000 00000001 00000007"));
    assert_eq!(StatusPayload::parse(&out).unwrap(), payload);
}

#[test]
fn simple_replies() {
    let mut out = Vec::new();
    encode_simple_reply(ErrorCode::EIO, 7, &mut out);
    assert_eq!(out, bytes("67446698 00000005 0000000000000007"));
    assert_eq!(reply_header_len(Style::Structured, [0x67, 0x44, 0x66, 0x98]), Ok(16));
    let header = ReplyHeader::parse(Style::Structured, &out).unwrap();
    assert_eq!(header, ReplyHeader::Simple { error: ErrorCode::EIO, cookie: 7 });
    assert!(header.is_done());
}

#[test]
fn chunks() {
    let data = Chunk::Data { offset: 0x2000, data: Bytes::from_static(b"ab") };
    let status = Chunk::Status { context: 3, extents: vec![Extent { length: 512, flags: STATE_HOLE | STATE_ZERO }] };
    let error = Chunk::Error { error: ErrorCode::EINVAL, message: "m".into() };
    let at = Chunk::ErrorAt { error: ErrorCode::EIO, message: "m".into(), offset: 0x2000 };
    let all = [
        (&Chunk::None, true, "668e33ef 0001 0000 0000000000000007 00000000", ""),
        (&data, false, "668e33ef 0000 0001 0000000000000007 0000000a 0000000000002000", "6162"),
        (
            &Chunk::Hole { offset: 0x2000, length: 0x1000 },
            false,
            "668e33ef 0000 0002 0000000000000007 0000000c 0000000000002000 00001000",
            "",
        ),
        (&status, true, "668e33ef 0001 0005 0000000000000007 0000000c 00000003 00000200 00000003", ""),
        (&error, true, "668e33ef 0001 8001 0000000000000007 00000007 00000016 0001 6d", ""),
        (&at, true, "668e33ef 0001 8002 0000000000000007 0000000f 00000005 0001 6d 0000000000002000", ""),
    ];
    for (chunk, done, head, tail) in all {
        let mut out = Vec::new();
        chunk.encode(ReplyTo { style: Style::Structured, cookie: 7, offset: 0x1000 }, done, &mut out).unwrap();
        assert_eq!(out, bytes(head), "{chunk:?}");
        out.extend(bytes(tail));
        let (header, payload) = out.split_at(20);
        let header = ReplyHeader::parse(Style::Structured, header).unwrap();
        assert_eq!(header.is_done(), done);
        assert_eq!(header.payload_len(2).unwrap(), payload.len());
        let again = Chunk::parse(Style::Structured, chunk.kind(Style::Structured), Bytes::copy_from_slice(payload));
        assert_eq!(&again.unwrap(), chunk);
    }
}

#[test]
fn extended_chunks() {
    let to = ReplyTo { style: Style::Extended, cookie: 7, offset: 0x1000 };
    let status = Chunk::Status { context: 3, extents: vec![Extent { length: 1 << 40, flags: 1 << 33 }] };
    let mut out = Vec::new();
    status.encode(to, true, &mut out).unwrap();
    let hex = "6e8a278c 0001 0006 0000000000000007 0000000000001000 0000000000000018
               00000003 00000001 0000010000000000 0000000200000000";
    assert_eq!(out, bytes(hex));
    let (header, payload) = out.split_at(32);
    let header = ReplyHeader::parse(Style::Extended, header).unwrap();
    let ReplyHeader::Chunk { kind, offset, .. } = header else { panic!("{header:?}") };
    assert_eq!((kind, offset), (ChunkKind::BLOCK_STATUS_EXT, Some(0x1000)));
    assert_eq!(Chunk::parse(Style::Extended, kind, Bytes::copy_from_slice(payload)).unwrap(), status);
}
