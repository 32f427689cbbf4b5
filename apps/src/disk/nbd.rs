//! `nbd:`: an export of a server.

use std::path::PathBuf;
use std::time::Duration;

use vvu_pmd::bdev::nbd::{Config, Server};

use super::cache;
use crate::port::{Options, number, path};

/// The port that the protocol has.
const PORT: u16 = 10809;

/// Where a server is, which export of it is meant, and how to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NbdSpec {
    server: Server,
    export: String,
    timeout: Duration,
    write_back: bool,
    /// Folder of certificates, and the name that is in the server's.
    #[cfg(feature = "tls")]
    tls: Option<(PathBuf, String)>,
}

impl NbdSpec {
    /// From `HOST[:PORT]`, `//HOST[:PORT][/EXPORT]` or a path, with options.
    pub(super) fn take(target: &str, options: &mut Options<'_>) -> Result<Self, String> {
        let (server, inside) = address(target)?;
        let named = options.take("export", |name| Ok(name.to_owned()))?;
        let export = match (named, inside) {
            (Some(named), "") => named,
            (None, inside) => inside.to_owned(),
            (Some(named), inside) => {
                return Err(format!(
                    "option export={named}, but {target} has the export {inside} already"
                ));
            }
        };
        let timeout = options.take("timeout", |v| number(v, 1..=3600))?;
        let folder = options.take("tls", path)?;
        let name = options.take("tls-name", |name| Ok(name.to_owned()))?;
        if name.is_some() && folder.is_none() {
            return Err("option tls-name is for tls=DIRECTORY, which is not there".into());
        }
        Ok(Self {
            #[cfg(feature = "tls")]
            tls: tls(folder, name, &server)?,
            #[cfg(not(feature = "tls"))]
            server: no_tls(folder, server)?,
            #[cfg(feature = "tls")]
            server,
            export,
            timeout: timeout.map_or(Config::TIMEOUT, Duration::from_secs),
            write_back: options.take("cache", cache)?.unwrap_or(true),
        })
    }

    /// What the disk is opened with.
    pub(super) fn config(&self) -> Result<Config, String> {
        let mut config = Config::new(self.server.clone(), &self.export);
        config.timeout = self.timeout;
        config.write_back = self.write_back;
        #[cfg(feature = "tls")]
        if let Some((folder, name)) = &self.tls {
            use vvu_pmd::bdev::nbd::TlsConfig;
            let tls = TlsConfig::from_directory(folder, name);
            config.tls = Some(std::sync::Arc::new(tls.map_err(|error| error.to_string())?));
        }
        Ok(config)
    }
}

#[cfg(feature = "tls")]
fn tls(
    folder: Option<PathBuf>,
    name: Option<String>,
    server: &Server,
) -> Result<Option<(PathBuf, String)>, String> {
    let Some(folder) = folder else {
        return Ok(None);
    };
    match (name, server) {
        (Some(name), _) => Ok(Some((folder, name))),
        (None, Server::Tcp { host, .. }) => Ok(Some((folder, host.clone()))),
        (None, Server::Unix(_)) => Err(
            "option tls at a socket's path needs tls-name=HOST: the name in the server's \
             certificate"
                .into(),
        ),
    }
}

#[cfg(not(feature = "tls"))]
fn no_tls(folder: Option<PathBuf>, server: Server) -> Result<Server, String> {
    match folder {
        None => Ok(server),
        Some(_) => Err("this vvu was built without TLS: build it with --features tls".into()),
    }
}

/// Where the server is, and the export that the address names.
fn address(target: &str) -> Result<(Server, &str), String> {
    if target.starts_with('/') && !target.starts_with("//") {
        return Ok((Server::Unix(target.into()), ""));
    }
    let (authority, export) = match target.strip_prefix("//") {
        Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
        None => (target, ""),
    };
    let bad = || {
        format!(
            "{target:?} is not HOST, HOST:PORT, [IPV6]:PORT, //HOST:PORT/EXPORT or the path of a \
             socket, such as nbd:10.0.0.5:10809 or nbd:/run/nbd.sock"
        )
    };
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(bad)?;
            match port {
                "" => (host, None),
                port => (host, Some(port.strip_prefix(':').ok_or_else(bad)?)),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() || host.contains(['/', '?', '@']) {
        return Err(bad());
    }
    let port = match port {
        None => PORT,
        Some(port) => match port.parse() {
            Ok(port @ 1..) => port,
            _ => return Err(bad()),
        },
    };
    let host = host.to_owned();
    Ok((Server::Tcp { host, port }, export))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<NbdSpec, String> {
        let mut parts = text.split(',');
        let target = parts.next().unwrap();
        let mut options = Options::new(parts)?;
        let spec = NbdSpec::take(target, &mut options)?;
        options.finish("disk")?;
        Ok(spec)
    }

    #[test]
    fn every_way_to_write_an_address() {
        let tcp = |host: &str, port| Server::Tcp {
            host: host.into(),
            port,
        };
        for (text, server, export) in [
            ("storage", tcp("storage", PORT), ""),
            ("10.0.0.5:1234", tcp("10.0.0.5", 1234), ""),
            ("[fe80::1]", tcp("fe80::1", PORT), ""),
            ("[fe80::1]:1234,export=a", tcp("fe80::1", 1234), "a"),
            ("//storage/disks/1", tcp("storage", PORT), "disks/1"),
            ("//storage:1/,export=x", tcp("storage", 1), "x"),
            (
                "/run/nbd.sock,export=a=b",
                Server::Unix("/run/nbd.sock".into()),
                "a=b",
            ),
        ] {
            let spec = parse(text).unwrap();
            assert_eq!((&spec.server, &*spec.export), (&server, export), "{text}");
            assert_eq!(spec.timeout, Config::TIMEOUT);
        }
        assert_eq!(
            parse("a,timeout=5").unwrap().timeout,
            Duration::from_secs(5)
        );
    }

    #[test]
    fn what_makes_no_sense_is_explained() {
        for (text, words) in [
            ("", "is not HOST"),
            (":1", "is not HOST"),
            ("a:0", "is not HOST"),
            ("a:70000", "is not HOST"),
            ("a:b:c", "is not HOST"),
            ("[::1", "is not HOST"),
            ("[::1]1", "is not HOST"),
            ("run/nbd.sock", "is not HOST"),
            ("//a/b,export=c", "has the export b already"),
            ("a,timeout=0", "from 1 to 3600"),
            ("a,tls-name=b", "tls=DIRECTORY"),
            ("a,tls=", "cannot be empty"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = match cfg!(feature = "tls") {
            true => parse("/run/a,tls=/etc/tls").unwrap_err(),
            false => parse("a,tls=/etc/tls").unwrap_err(),
        };
        assert!(error.contains("tls-name=HOST") || error.contains("--features tls"));
    }
}
