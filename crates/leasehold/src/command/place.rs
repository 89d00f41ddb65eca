//! Where a file is, as people name it: a URL, or a path behind `--socket`.

use crate::command::Common;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::server::settings::FabricChoice;
use leasehold_client::{Client, Credentials, DEFAULT_CONTROL_PORT, Location, Reason, Server, proto};
use std::sync::Arc;

/// Finds the file or directory that `text` names.
pub(crate) fn find(common: &Common, text: &str) -> anyhow::Result<Location> {
    match (&common.socket, text.starts_with('/')) {
        (Some(socket), true) => Ok(Location { server: Server::Unix(socket.clone()), path: text.to_owned() }),
        (Some(_), false) if text.starts_with("leasehold://") => Err(Failure::new(
            Exit::Usage,
            format!("{text} names a server, and so does --socket (or LEASEHOLD_SOCKET): give one of them"),
        )
        .into()),
        (Some(_), false) => Err(Failure::new(
            Exit::Usage,
            format!("{text:?} is not a path in the store; it begins with a slash: \"/{text}\""),
        )
        .into()),
        (None, true) => Err(Failure::new(
            Exit::Usage,
            format!("{text} names no server; write leasehold://HOST{text}, or add --socket PATH"),
        )
        .into()),
        (None, false) => Ok(text.parse()?),
    }
}

/// Finds the server: by a URL, by `--socket`, or this machine's.
pub(crate) fn server(common: &Common, text: Option<&str>) -> anyhow::Result<Server> {
    match (text, &common.socket) {
        (Some(text), _) => Ok(find(common, text)?.server),
        (None, Some(socket)) => Ok(Server::Unix(socket.clone())),
        (None, None) => Ok(Server::Tcp { host: "127.0.0.1".to_owned(), port: DEFAULT_CONTROL_PORT }),
    }
}

/// Connects, with the credentials that were given.
pub(crate) async fn connect(common: &Common, server: &Server) -> anyhow::Result<Client> {
    let credentials = common.credentials.as_deref().map(Credentials::load).transpose();
    let credentials = credentials.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let client = Client::connect_with(server, credentials.map(Arc::new)).await?;
    Ok(client.by(common.fabric.and_then(FabricChoice::kind)))
}

/// Connects to the server of a file, and gives the file's path there.
pub(crate) async fn open(common: &Common, text: &str) -> anyhow::Result<(Client, String)> {
    let location = find(common, text)?;
    Ok((connect(common, &location.server).await?, location.path))
}

/// The path that a second argument names, which must be on the same server as the first.
pub(crate) fn on_the_same(common: &Common, client: &Client, text: &str) -> anyhow::Result<String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    let location = find(common, text)?;
    if location.server != *client.server() {
        let (here, there) = (client.server(), location.server);
        let message = format!("{text} is on {there}, and the other on {here}; get it and put it instead");
        return Err(Failure::new(Exit::Usage, message).into());
    }
    Ok(location.path)
}

/// The name that something called `from` gets at `to`: in it, if that is a directory, as for mv(1).
pub(crate) async fn into_directory(client: &Client, from: &str, to: String) -> anyhow::Result<String> {
    let directory = to.strip_suffix('/').filter(|directory| !directory.is_empty());
    match client.stat(directory.unwrap_or(&to)).await {
        Ok(file) if file.kind() == proto::file::Kind::Directory => {
            let name = from.rsplit('/').next().unwrap_or_default();
            Ok(format!("{}/{name}", to.trim_end_matches('/')))
        }
        Ok(_) if directory.is_some() => {
            let text = format!("{to} is not a directory; leave out the slash at its end to mean the file");
            Err(Failure::new(Exit::Usage, text).into())
        }
        Ok(_) => Ok(to),
        Err(error) if error.reason == Reason::NotFound && directory.is_none() => Ok(to),
        Err(error) => Err(error.into()),
    }
}

/// Whether a name from the command line is a file, not a directory or the root.
pub(crate) fn must_name_a_file(path: &str) -> Outcome {
    if path.ends_with('/') {
        let message = format!("{path:?} names a directory; name a file in it");
        return Err(Failure::new(Exit::Usage, message).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(socket: Option<&str>) -> Common {
        Common { socket: socket.map(Into::into), credentials: None, fabric: None, json: false }
    }

    #[test]
    fn a_path_needs_a_socket_and_a_url_needs_none() {
        let found = find(&common(Some("/run/s")), "/x").unwrap();
        assert_eq!(found, Location { server: Server::Unix("/run/s".into()), path: "/x".to_owned() });
        assert_eq!(find(&common(None), "leasehold://h/x").unwrap().path, "/x");
        for (socket, text, says) in [
            (None, "/x", "write leasehold://HOST/x, or add --socket PATH"),
            (Some("/run/s"), "leasehold://h/x", "give one of them"),
            (Some("/run/s"), "x", r#"it begins with a slash: "/x""#),
            (None, "x", "not of the form leasehold://"),
        ] {
            let error = find(&common(socket), text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn without_a_name_the_server_is_this_machines() {
        assert_eq!(server(&common(None), None).unwrap().to_string(), "leasehold://127.0.0.1:7117");
        assert_eq!(server(&common(Some("/run/s")), None).unwrap(), Server::Unix("/run/s".into()));
    }
}
