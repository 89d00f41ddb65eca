//! Setting a connection up: what the two ends agree on in their MPA frames.

use super::config::Config;
use super::mpa::{Enhanced, Frame, NOT_NEGOTIATED, Ready, Role};
use super::negotiation::Offer;

/// What was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Frames carry CRCs.
    pub(crate) crc: bool,
    /// The peer is one of our ends.
    pub(crate) offer: Option<Offer>,
    /// Reads at once that this end may ask for.
    pub(crate) ord: u16,
    /// The initiator's first frame is one that is no message.
    pub(crate) ready: Option<FirstFrame>,
}

/// A ready-to-receive frame of zero length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstFrame {
    Send,
    Write,
    Read,
}

/// What the responder makes of a request: the agreement and the reply, which lacks the user's private data; or the
/// rejection.
pub(crate) fn respond(config: &Config, request: &Frame) -> Result<(Agreement, Frame), Frame> {
    let mut reply = Frame {
        role: Role::Reply,
        markers: false,
        crc: config.crc || request.crc,
        reject: false,
        revision: request.revision.clamp(1, 2),
        enhanced: None,
        private_data: Vec::new(),
    };
    if request.markers {
        return Err(reject(reply, b"markers are not supported; send M = 0"));
    }
    if !(1..=2).contains(&request.revision) {
        return Err(reject(reply, b"MPA revisions 1 and 2 are supported"));
    }
    let mut agreement =
        Agreement { crc: reply.crc, offer: Offer::split(&request.private_data).0, ord: 1, ready: None };
    if let Some(asked) = request.enhanced {
        let bounded =
            |value: u16| if value == NOT_NEGOTIATED { config.reads_max } else { value.min(config.reads_max) };
        agreement.ord = bounded(asked.ird);
        let ready = asked.ready.map(|ready| match ready {
            Ready { write: true, .. } => FirstFrame::Write,
            Ready { read: true, .. } => FirstFrame::Read,
            Ready { send: true, .. } => FirstFrame::Send,
            // Nothing offered: one that this end can take must be named all the same (RFC 6581 section 9.2).
            _ => FirstFrame::Write,
        });
        agreement.ready = ready;
        let ready = ready.map(|first| Ready {
            send: first == FirstFrame::Send,
            write: first == FirstFrame::Write,
            read: first == FirstFrame::Read,
        });
        reply.enhanced = Some(Enhanced { ird: bounded(asked.ord), ord: agreement.ord, ready });
    }
    Ok((agreement, reply))
}

/// A rejection: the reply with R set and words of why.
pub(crate) fn reject(reply: Frame, why: &[u8]) -> Frame {
    Frame { reject: true, private_data: why[..why.len().min(256)].to_vec(), ..reply }
}

/// The initiator's request.
pub(crate) fn request(config: &Config, private_data: &[u8]) -> Frame {
    let ready = config.peer_to_peer.then_some(Ready { send: true, write: true, read: false });
    let enhanced = Enhanced { ird: config.reads_max, ord: config.reads_max, ready };
    Frame {
        role: Role::Request,
        markers: false,
        crc: config.crc,
        reject: false,
        revision: if config.enhanced { 2 } else { 1 },
        enhanced: config.enhanced.then_some(enhanced),
        private_data: Offer { segment_max: config.segment_max }.join(private_data),
    }
}

/// What the initiator makes of the reply to its request.
pub(crate) fn conclude(config: &Config, reply: &Frame) -> Result<Agreement, &'static str> {
    if reply.markers {
        return Err("it asks for markers, which are not supported");
    }
    if !(1..=2).contains(&reply.revision) || (reply.revision == 2 && !config.enhanced) {
        return Err("it answers with another MPA revision");
    }
    let mut agreement = Agreement {
        crc: config.crc || reply.crc,
        offer: Offer::split(&reply.private_data).0,
        ord: 1,
        ready: None,
    };
    let Some(enhanced) = reply.enhanced else { return Ok(agreement) };
    if enhanced.ord != NOT_NEGOTIATED && enhanced.ord > config.reads_max {
        return Err("it wants more reads at once than it was offered");
    }
    agreement.ord =
        if enhanced.ird == NOT_NEGOTIATED { config.reads_max } else { enhanced.ird.min(config.reads_max) };
    agreement.ready = match enhanced.ready {
        Some(Ready { write: true, .. }) if config.peer_to_peer => Some(FirstFrame::Write),
        Some(Ready { send: true, .. }) if config.peer_to_peer => Some(FirstFrame::Send),
        Some(_) => return Err("it names no ready-to-receive that was offered"),
        None => None,
    };
    Ok(agreement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_two_ends_agree() {
        for (crc, enhanced, peer_to_peer) in
            [(true, true, true), (false, true, false), (true, false, false), (false, false, true)]
        {
            let initiator = Config { crc, enhanced, peer_to_peer, reads_max: 8, ..Config::default() };
            let responder = Config { crc: false, reads_max: 4, ..Config::default() };
            let (theirs, mut reply) =
                respond(&responder, &request(&initiator, b"token")).expect("nothing to object to");
            reply.private_data = Offer { segment_max: 1000 }.join(b"");
            let ours = conclude(&initiator, &reply).expect("a good reply");
            assert_eq!((ours.crc, theirs.crc), (crc, crc), "either end's wish for CRCs counts");
            assert_eq!(ours.ready, (enhanced && peer_to_peer).then_some(FirstFrame::Write));
            assert_eq!(ours.ready, theirs.ready);
            assert_eq!((ours.ord, theirs.ord), if enhanced { (4, 4) } else { (1, 1) });
            assert_eq!(ours.offer, Some(Offer { segment_max: 1000 }));
            assert_eq!(theirs.offer, Some(Offer { segment_max: 61_440 }));
        }
    }

    #[test]
    fn markers_and_other_revisions_are_rejected() {
        let config = Config::default();
        let markers = Frame { markers: true, ..request(&config, b"") };
        let rejection = respond(&config, &markers).expect_err("markers");
        assert!(rejection.reject && rejection.private_data.starts_with(b"markers"));
        for revision in [0, 3] {
            let other = Frame { revision, enhanced: None, ..request(&config, b"") };
            assert!(respond(&config, &other).expect_err("revision").reject);
        }
    }

    #[test]
    fn a_ready_to_receive_that_only_a_send_can_be_is_a_send() {
        let config = Config::default();
        let ready = Some(Ready { send: true, write: false, read: false });
        let asked = Frame { enhanced: Some(Enhanced { ird: 1, ord: 1, ready }), ..request(&config, b"") };
        let (agreement, reply) = respond(&config, &asked).expect("nothing to object to");
        assert_eq!(agreement.ready, Some(FirstFrame::Send));
        assert_eq!(reply.enhanced.and_then(|enhanced| enhanced.ready), ready);
    }
}
