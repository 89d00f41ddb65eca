//! What our own two ends tell each other beside the users' messages, and what they show when they connect.
//!
//! A device checks keys by itself, and answers a wrong one by ending the connection. So that a holder whose lease is revoked
//! keeps its others (P7), the ends agree before a key is invalidated: "revoked", and behind all that was written before it,
//! "drained". A control message is a Send with immediate data, which are the tag; a user's message is a Send without.

/// What is said about the tag in the immediate data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control<'a> {
    /// The sender exposes memory under it, whose first byte has this address there.
    Exposed { first: u16 },
    /// The sender revokes it: write no more under it, and say [`Control::Drained`].
    Revoked,
    /// The sender has written its last under the receiver's tag; all of it came before this.
    Drained,
    /// The sender does not know it any more.
    Forgotten,
    /// The sender has written its last under the receiver's tag, and wants it revoked.
    Invalidated,
    /// The receiver broke the protocol; the connection ends. Of no tag.
    Terminated(&'a str),
}

impl Control<'_> {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Control::Exposed { first } => [&[0][..], &first.to_be_bytes()].concat(),
            Control::Revoked => vec![1],
            Control::Drained => vec![2],
            Control::Forgotten => vec![3],
            Control::Invalidated => vec![4],
            Control::Terminated(why) => [&[5], why.as_bytes()].concat(),
        }
    }

    /// `None`: not a control message of this version.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Control<'_>> {
        Some(match bytes {
            [0, high, low] => Control::Exposed { first: u16::from_be_bytes([*high, *low]) },
            [1] => Control::Revoked,
            [2] => Control::Drained,
            [3] => Control::Forgotten,
            [4] => Control::Invalidated,
            [5, why @ ..] => Control::Terminated(std::str::from_utf8(why).ok()?),
            _ => return None,
        })
    }
}

const KEY: &[u8; 4] = b"LSHV";
const VERSION: u8 = 1;
const SPEAKS_CONTROL: u8 = 1;

/// What an end shows when it connects: 8 bytes, and the user's private data. Their length is among the 8, since InfiniBand and
/// RoCE carry a fixed number of bytes, filled up with zeros.
///
/// ```text
/// "LSHV" 4 | version 1 | flags 1: bit 0, speaks control messages | length 1 | zero 1
/// ```
/// What begins in another way is all the user's.
pub(crate) fn hello(data: &[u8]) -> Vec<u8> {
    let length = u8::try_from(data.len()).expect("private data are short");
    [KEY, &[VERSION, SPEAKS_CONTROL, length, 0][..], data].concat()
}

/// Whether the peer speaks control messages, and the user's private data.
pub(crate) fn split(shown: &[u8]) -> (bool, &[u8]) {
    match shown {
        [b'L', b'S', b'H', b'V', VERSION, flags, length, _, data @ ..]
            if data.len() >= usize::from(*length) =>
        {
            (flags & SPEAKS_CONTROL != 0, &data[..usize::from(*length)])
        }
        _ => (false, shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let all = [
            Control::Exposed { first: 4095 },
            Control::Revoked,
            Control::Drained,
            Control::Forgotten,
            Control::Invalidated,
            Control::Terminated("unknown tag"),
        ];
        for control in all {
            assert_eq!(Control::parse(&control.encode()), Some(control));
        }
        for other in [&[][..], &[0], &[1, 1], &[6], &[5, 0xff]] {
            assert_eq!(Control::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn private_data_are_found_among_the_zeros_behind_them() {
        let mut shown = hello(b"token\0");
        shown.resize(56, 0);
        assert_eq!(split(&shown), (true, &b"token\0"[..]));
        assert_eq!(split(b"token"), (false, &b"token"[..]));
        assert_eq!(split(b"LSHV\x01\x00\x09\x00short"), (false, &b"LSHV\x01\x00\x09\x00short"[..]));
        assert_eq!(split(b"LSHV\x01\x00\x02\x00ab\0"), (false, &b"ab"[..]));
    }
}
