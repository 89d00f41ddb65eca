use super::*;
use proptest::prelude::*;

fn status() -> impl Strategy<Value = Status> {
    (0u8..=11).prop_map(|byte| Status::try_from(byte).expect("a status"))
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<u64>(), any::<u64>(), any::<Option<u32>>())
            .prop_map(|(request, lease, crc32c)| Message::Commit(Commit { request, lease, crc32c })),
        (any::<[u64; 5]>(), any::<u32>()).prop_map(
            |([request, lease, offset, length, sink_offset], sink)| {
                Message::Fetch(Fetch { request, lease, offset, length, sink_tag: Tag(sink), sink_offset })
            }
        ),
        any::<[u64; 4]>().prop_map(|[request, lease, offset, length]| {
            Message::Capture(Capture { request, lease, offset, length })
        }),
        (any::<u64>(), status(), any::<u64>(), ".{0,40}").prop_map(|(request, status, size, text)| {
            let text = if status == Status::Ok { String::new() } else { text };
            Message::Captured(Captured { request, status, size, text })
        }),
        (any::<u64>(), status(), any::<u64>(), ".{0,40}").prop_map(|(request, status, size, text)| {
            let text = if status == Status::Ok { String::new() } else { text };
            Message::Committed(Committed { request, status, size, text })
        }),
        (any::<u64>(), status(), ".{0,40}").prop_map(|(request, status, text)| {
            let text = if status == Status::Ok { String::new() } else { text };
            Message::Fetched(Fetched { request, status, text })
        }),
    ]
}

proptest! {
    #[test]
    fn what_is_encoded_is_parsed_back(message in message()) {
        prop_assert_eq!(Message::parse(&message.encode()), Ok(message));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused_and_what_is_parsed_is_canonical(
        first in prop_oneof![Just(1u8), Just(2), Just(3), Just(0x81), Just(0x82), Just(0x83), any::<u8>()],
        rest in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..64),
    ) {
        let mut bytes = vec![first];
        bytes.extend(rest);
        if let Ok(message) = Message::parse(&bytes) {
            prop_assert_eq!(&message.encode()[..], &bytes[..]);
        }
    }
}

#[test]
fn the_layout_on_the_wire_is_the_documented_one() {
    let commit = Message::Commit(Commit { request: 2, lease: 3, crc32c: Some(0x0102_0304) });
    assert_eq!(commit.encode()[..], [1, 1, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
    let fetch = Fetch { request: 1, lease: 2, offset: 3, length: 4, sink_tag: Tag(5), sink_offset: 6 };
    let fetch = Message::Fetch(fetch).encode();
    assert_eq!(fetch.len(), 48);
    assert_eq!(fetch[..8], [2, 0, 0, 0, 0, 0, 0, 5]);
    assert_eq!(fetch[40..], [0, 0, 0, 0, 0, 0, 0, 6]);
    let capture = Message::Capture(Capture { request: 1, lease: 2, offset: 3, length: 4 }).encode();
    assert_eq!(capture.len(), 40);
    let words: Vec<u64> =
        capture.chunks(8).map(|word| u64::from_be_bytes(word.try_into().expect("8 bytes"))).collect();
    assert_eq!(words, [0x0300_0000_0000_0000, 1, 2, 3, 4]);
    let captured = Captured { request: 1, status: Status::Ok, size: 9, text: String::new() };
    let captured = Message::Captured(captured).encode();
    assert_eq!((captured.len(), captured[0], captured[23]), (24, 0x83, 9));
    let answer = Committed { request: 1, status: Status::Mismatch, size: 9, text: "no".to_owned() };
    let answer = Message::Committed(answer).encode();
    assert_eq!(answer[..8], [0x81, 4, 0, 0, 0, 0, 0, 0]);
    assert_eq!(answer[16..], [0, 0, 0, 0, 0, 0, 0, 9, b'n', b'o']);
}

#[test]
fn what_is_malformed_is_refused_for_its_own_reason() {
    assert_eq!(Message::parse(&[]), Err(ParseError::Length { kind: 0, length: 0, expected: 1 }));
    assert_eq!(Message::parse(&[7; 24]), Err(ParseError::Kind(7)));
    assert_eq!(Message::parse(&[1; 23]), Err(ParseError::Length { kind: 1, length: 23, expected: 24 }));
    assert_eq!(Message::parse(&[1; 25]), Err(ParseError::Length { kind: 1, length: 25, expected: 24 }));
    let mut fetched = [0; 16];
    fetched[0] = 0x82;
    fetched[1] = 12;
    assert_eq!(Message::parse(&fetched), Err(ParseError::Status(12)));
    fetched[1] = 1;
    fetched[7] = 1;
    assert_eq!(Message::parse(&fetched), Err(ParseError::Reserved(0x82)));
    fetched[7] = 0;
    let mut capture = [0; 40];
    (capture[0], capture[7]) = (3, 1);
    assert_eq!(Message::parse(&capture), Err(ParseError::Reserved(3)));
    let mut texted = fetched.to_vec();
    texted.push(0xFF);
    assert_eq!(Message::parse(&texted), Err(ParseError::Text(0x82)));
}

#[test]
fn a_long_text_is_cut_between_characters() {
    let text = "é".repeat(TEXT_MAX);
    let encoded = Message::Fetched(Fetched { request: 0, status: Status::Io, text }).encode();
    assert_eq!(encoded.len(), FETCHED_LENGTH + TEXT_MAX);
    assert!(Message::parse(&encoded).is_ok());
}
