//! The row about small frames: a put between two network namespaces with an MTU of 1500 bytes.

use super::figure::{Found, Row, Spread, Unit};
use super::process::{Peer, Served, Serving, peer_output};
use super::{Context, GIB};
use anyhow::bail;
use std::process::{Command, Stdio};

/// Addresses that documentation uses (RFC 5737): nobody's.
const SERVER: &str = "192.0.2.1";
const CLIENT: &str = "192.0.2.2";

/// Two namespaces with a cable between them; gone when dropped.
struct Cable {
    server: String,
    client: String,
}

impl Cable {
    fn lay() -> anyhow::Result<Cable> {
        let number = std::process::id();
        let cable =
            Cable { server: format!("leasehold-{number}-s"), client: format!("leasehold-{number}-c") };
        let Cable { server, client } = &cable;
        for name in [server, client] {
            ip(&["netns", "add", name])?;
        }
        let (a, b) = (format!("lhs{number}"), format!("lhc{number}"));
        ip(&[
            "link", "add", &a, "mtu", "1500", "netns", server, "type", "veth", "peer", "name", &b, "mtu",
            "1500", "netns", client,
        ])?;
        for (name, end, address) in [(server, &a, SERVER), (client, &b, CLIENT)] {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", end])?;
            ip(&["-n", name, "link", "set", end, "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            // It may not be there yet.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("ip").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if !status.success() {
        bail!("ip {}: {status}", arguments.join(" "));
    }
    Ok(())
}

pub(super) async fn mtu_1500(context: &Context) -> anyhow::Result<Vec<Row>> {
    context.needs_a_disk()?;
    let row = |found, note| Row {
        name: "mtu-1500",
        what: "durable put between two network namespaces, MTU 1500, against plain TCP there",
        unit: Unit::GibPerSecond,
        found,
        bar: None,
        note,
    };
    let cable = match Cable::lay() {
        Ok(cable) => cable,
        Err(why) => return Ok(vec![row(Found::Absent(format!("not permitted ({why:#})")), None)]),
    };
    let store = context.store()?;
    let serving = Serving { namespace: Some((&cable.server, SERVER)), ..Serving::default() };
    let served = Served::start(store.path(), serving).await?;
    // The socket is a file, so it is reached from here.
    let client = served.client().await?;
    let peer = Peer::start(&["memory", &format!("{SERVER}:0")], Some(&cable.server)).await?;
    let bytes = context.bytes.to_string();
    let rate = |took: f64| context.bytes as f64 / GIB / took;
    let mut pairs = Vec::new();
    for round in context.rounds() {
        let server = format!("leasehold://{}/", served.control);
        let ours = peer_output(&["put", &server, &bytes], &cable.client).await?;
        client.remove("/put").await?;
        let theirs = peer_output(&["send", &peer.address, &bytes], &cable.client).await?;
        if round.counts {
            pairs.push((rate(ours), rate(theirs)));
        }
    }
    peer.stop().await?;
    served.stop().await?;
    let best = Spread::new(pairs.iter().map(|pair| pair.1).collect()).median();
    let note = format!("plain TCP there {best:.2} GiB/s; the disk bounds the put as in the row put");
    Ok(vec![row(Found::pairs("TCP", &pairs), Some(note))])
}
