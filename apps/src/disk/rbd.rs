//! `rbd:`: an image in a Ceph cluster.

use std::time::Duration;

use vvu_pmd::bdev::rbd::RbdConfig;

use super::cache;
use crate::port::{Options, number, path};

/// From `POOL/IMAGE`, `POOL/NAMESPACE/IMAGE`, either with `@SNAPSHOT`, and options.
pub(super) fn take(target: &str, options: &mut Options<'_>) -> Result<RbdConfig, String> {
    let (place, snapshot) = match target.split_once('@') {
        Some((place, snapshot)) => (place, Some(snapshot)),
        None => (target, None),
    };
    let parts: Vec<_> = place.split('/').collect();
    let (pool, namespace, image) = match parts[..] {
        [pool, image] => (pool, None, image),
        [pool, namespace, image] => (pool, Some(namespace), image),
        _ => ("", None, ""),
    };
    if [pool, image].contains(&"") || [namespace, snapshot].contains(&Some("")) {
        return Err(format!(
            "{target:?} is not POOL/IMAGE, POOL/NAMESPACE/IMAGE or POOL/IMAGE@SNAPSHOT, such as \
             rbd:disks/guest1"
        ));
    }
    let new = RbdConfig::new(pool, image);
    let timeout = options.take("timeout", |v| number(v, 1..=3600))?;
    Ok(RbdConfig {
        namespace: namespace.map(str::to_owned),
        snapshot: snapshot.map(str::to_owned),
        config: options.take("conf", path)?,
        user: options.take("user", |user| Ok(user.to_owned()))?,
        timeout: timeout.map_or(new.timeout, Duration::from_secs),
        write_back: options.take("cache", cache)?.unwrap_or(true),
        ..new
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(text: &str) -> Result<RbdConfig, String> {
        let mut parts = text.split(',');
        let target = parts.next().unwrap();
        let mut options = Options::new(parts)?;
        let config = take(target, &mut options)?;
        options.finish("disk")?;
        Ok(config)
    }

    #[test]
    fn images_and_what_are_none() {
        assert_eq!(parse("a/b").unwrap(), RbdConfig::new("a", "b"));
        let all = "a/n/b@s,conf=/etc/c,user=vvu,timeout=5,cache=through";
        let wanted = RbdConfig {
            namespace: Some("n".into()),
            snapshot: Some("s".into()),
            config: Some("/etc/c".into()),
            user: Some("vvu".into()),
            timeout: Duration::from_secs(5),
            write_back: false,
            ..RbdConfig::new("a", "b")
        };
        assert_eq!(parse(all).unwrap(), wanted);
        for text in ["", "a", "a/", "/b", "a//b", "a/b/c/d", "a/b@", "@s"] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("is not POOL/IMAGE"), "{text}: {error}");
        }
        assert!(parse("a/b,timeout=0").is_err());
    }
}
