//! VLANs of a port (IEEE 802.1Q): which one a frame from it belongs to, and how a frame of one is
//! delivered to it.
//!
//! A port without VLANs takes part in none: its frames pass as they are, tags and all, to ports
//! of the same kind. The others see C-tags only (EtherType 0x8100), and what could be taken for
//! another VLAN's frame behind their back is dropped: see [`Vlans::classify`].

use crate::port::Edit;

/// EtherType of a C-tag.
const CTAG: [u8; 2] = [0x81, 0];
/// EtherTypes of a tag of any kind: C-tag, S-tag, and what was used before there were S-tags.
const TAGS: [[u8; 2]; 3] = [CTAG, [0x88, 0xa8], [0x91, 0]];

/// A set of VLAN identifiers.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; 64]>);

impl VlanSet {
    /// The largest identifier that a VLAN may have. 0 is none, 4095 is reserved.
    pub const LAST: u16 = 4094;

    /// These, as far as they may be.
    pub fn new(vids: impl IntoIterator<Item = u16>) -> Self {
        let mut set = Box::new([0; 64]);
        for vid in vids {
            if (1..=Self::LAST).contains(&vid)
                && let Some(word) = set.get_mut(usize::from(vid / 64))
            {
                *word |= 1 << (vid % 64);
            }
        }
        Self(set)
    }

    /// Whether `vid` is one of them.
    #[inline]
    pub fn has(&self, vid: u16) -> bool {
        let word = self.0.get(usize::from(vid / 64));
        word.is_some_and(|word| word >> (vid % 64) & 1 != 0)
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        (1..=Self::LAST).filter(|&vid| self.has(vid))
    }
}

impl std::fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// VLANs of a port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Vlans {
    /// Takes part in none.
    #[default]
    None,
    /// One, of which the other side knows nothing.
    Access(u16),
    /// Several, told apart by tags.
    Trunk {
        /// Those with a tag.
        tagged: VlanSet,
        /// The one whose frames have no tag.
        native: Option<u16>,
    },
}

/// What a frame says about its VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    /// Nothing.
    None,
    /// A priority but no VLAN.
    Priority,
    /// An identifier.
    Vid(u16),
}

/// Which VLAN a frame is in, and what it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Membership {
    /// 0 for a frame in no VLAN.
    pub(super) vid: u16,
    tag: Tag,
    /// Another tag follows the first.
    nested: bool,
}

/// The tag of a frame that starts with `head`, and whether another one follows. `None` if there
/// are tags that are no C-tags, or half ones.
fn tag(head: &[u8]) -> Option<(Tag, bool)> {
    let (kind, rest) = head.get(12..)?.split_first_chunk::<2>()?;
    if !TAGS.contains(kind) {
        return Some((Tag::None, false));
    }
    // A tag is followed by an EtherType.
    let (tci, rest) = rest.split_first_chunk::<2>()?;
    let next = rest.first_chunk::<2>()?;
    if *kind != CTAG {
        return None;
    }
    let tag = match u16::from_be_bytes(*tci) & 0xfff {
        0 => Tag::Priority,
        vid => Tag::Vid(vid),
    };
    Some((tag, TAGS.contains(next)))
}

impl Vlans {
    /// Where a frame that starts with `head` and came from this port belongs. `None` if it may
    /// not come from here:
    ///
    /// - a tag with an identifier on an access port, even its own, or one that a trunk does not
    ///   have;
    /// - no identifier on a trunk without a native VLAN;
    /// - tags that are no C-tags, cut short, or hidden behind a priority tag: whoever takes that
    ///   one off would send the frame to the VLAN of the hidden one.
    pub(super) fn classify(&self, head: &[u8]) -> Option<Membership> {
        if *self == Self::None {
            return Some(Membership::NONE);
        }
        let (tag, nested) = tag(head)?;
        if tag == Tag::Priority && nested {
            return None;
        }
        let vid = match (self, tag) {
            (Self::Access(vid), Tag::None | Tag::Priority) => Some(*vid),
            (Self::Trunk { native, .. }, Tag::None | Tag::Priority) => *native,
            (Self::Trunk { tagged, .. }, Tag::Vid(vid)) => tagged.has(vid).then_some(vid),
            _ => None,
        };
        vid.map(|vid| Membership { vid, tag, nested })
    }

    /// Whether frames of VLAN `vid` are for this port; 0 stands for frames in none.
    pub(super) fn has(&self, vid: u16) -> bool {
        match self {
            Self::None => vid == 0,
            Self::Access(own) => vid == *own,
            Self::Trunk { tagged, native } => tagged.has(vid) || *native == Some(vid),
        }
    }

    /// How a frame is delivered to this port. `None` if it is not for it.
    pub(super) fn egress(&self, frame: &Membership) -> Option<Edit> {
        let Membership { vid, tag, nested } = *frame;
        if !self.has(vid) {
            return None;
        }
        let bare = match self {
            Self::None => return Some(Edit::Keep),
            Self::Access(_) => true,
            Self::Trunk { native, .. } => *native == Some(vid),
        };
        let trunk = matches!(self, Self::Trunk { .. });
        match tag {
            // The next switch would take the inner tag for the frame's VLAN.
            Tag::Vid(_) if bare && trunk && nested => None,
            Tag::None if bare => Some(Edit::Keep),
            _ if bare => Some(Edit::Untag),
            Tag::None => Some(Edit::Tag(vid)),
            Tag::Priority => Some(Edit::Retag(vid)),
            Tag::Vid(_) => Some(Edit::Keep),
        }
    }

    /// All VLANs of the port, or that it is in none.
    pub(super) fn all(&self) -> Vec<u16> {
        match self {
            Self::None => vec![0],
            Self::Access(vid) => vec![*vid],
            Self::Trunk { tagged, native } => {
                let native = native.filter(|vid| !tagged.has(*vid));
                tagged.iter().chain(native).collect()
            }
        }
    }
}

impl Membership {
    /// In no VLAN, to be passed as it is.
    pub(super) const NONE: Self = Self {
        vid: 0,
        tag: Tag::None,
        nested: false,
    };

    /// Of a frame that starts with `head` and was found to be in `vid` elsewhere.
    pub(super) fn found(vid: u16, head: &[u8]) -> Self {
        match tag(head) {
            Some((tag, nested)) if vid != 0 => Self { vid, tag, nested },
            _ => Self { vid, ..Self::NONE },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The first bytes of a frame with these tags.
    fn head(tags: &[(u16, u16)]) -> Vec<u8> {
        let mut head = vec![0; 12];
        for (kind, tci) in tags {
            head.extend(kind.to_be_bytes());
            head.extend(tci.to_be_bytes());
        }
        head.extend([8, 0, 1, 2]);
        head
    }

    fn trunk(native: Option<u16>) -> Vlans {
        Vlans::Trunk {
            tagged: VlanSet::new([10, 11, 64, 4094]),
            native,
        }
    }

    #[test]
    fn where_frames_belong() {
        let bare: &[(u16, u16)] = &[];
        let vid = |vlans: &Vlans, tags: &[(u16, u16)]| Some(vlans.classify(&head(tags))?.vid);
        let (access, alone) = (Vlans::Access(7), trunk(None));
        let native = trunk(Some(5));
        for (tags, plain, on_access, on_trunk, on_native) in [
            (bare, Some(0), Some(7), None, Some(5)),
            (&[(0x8100, 0xe000)], Some(0), Some(7), None, Some(5)),
            (&[(0x8100, 7)], Some(0), None, None, None),
            (&[(0x8100, 5)], Some(0), None, None, None),
            (&[(0x8100, 10)], Some(0), None, Some(10), Some(10)),
            (&[(0x8100, 0x7ffe)], Some(0), None, Some(4094), Some(4094)),
            (&[(0x8100, 0xfff)], Some(0), None, None, None),
            (
                &[(0x8100, 10), (0x8100, 20)],
                Some(0),
                None,
                Some(10),
                Some(10),
            ),
            // Double tags that begin with none.
            (&[(0x8100, 0), (0x8100, 10)], Some(0), None, None, None),
            (&[(0x8100, 0), (0x88a8, 10)], Some(0), None, None, None),
            (&[(0x88a8, 10)], Some(0), None, None, None),
            (&[(0x9100, 10), (0x8100, 10)], Some(0), None, None, None),
        ] {
            assert_eq!(vid(&Vlans::None, tags), plain, "{tags:x?}");
            assert_eq!(vid(&access, tags), on_access, "{tags:x?}");
            assert_eq!(vid(&alone, tags), on_trunk, "{tags:x?}");
            assert_eq!(vid(&native, tags), on_native, "{tags:x?}");
        }
    }

    #[test]
    fn half_a_tag_belongs_nowhere() {
        let whole = head(&[(0x8100, 10)]);
        for len in 14..18 {
            assert_eq!(trunk(Some(10)).classify(&whole[..len]), None, "{len}");
            assert_eq!(Vlans::Access(10).classify(&whole[..len]), None, "{len}");
            assert!(Vlans::None.classify(&whole[..len]).is_some());
        }
        assert!(trunk(None).classify(&whole[..18]).is_some());
        // A frame of nothing but its header is whole.
        assert!(Vlans::Access(1).classify(&head(&[])[..14]).is_some());
    }

    #[test]
    fn how_frames_are_delivered() {
        let frame = |tags: &[(u16, u16)], vid| Membership::found(vid, &head(tags));
        let (access, native) = (Vlans::Access(10), trunk(Some(10)));
        let bare = frame(&[], 10);
        let priority = frame(&[(0x8100, 0x6000)], 10);
        let tagged = frame(&[(0x8100, 10)], 10);
        let double = frame(&[(0x8100, 10), (0x8100, 20)], 10);
        for (frame, to_access, to_trunk, to_native) in [
            (
                bare,
                Some(Edit::Keep),
                Some(Edit::Tag(10)),
                Some(Edit::Keep),
            ),
            (
                priority,
                Some(Edit::Untag),
                Some(Edit::Retag(10)),
                Some(Edit::Untag),
            ),
            (
                tagged,
                Some(Edit::Untag),
                Some(Edit::Keep),
                Some(Edit::Untag),
            ),
            (double, Some(Edit::Untag), Some(Edit::Keep), None),
        ] {
            assert_eq!(access.egress(&frame), to_access, "{frame:?}");
            assert_eq!(trunk(None).egress(&frame), to_trunk, "{frame:?}");
            assert_eq!(native.egress(&frame), to_native, "{frame:?}");
            assert_eq!(Vlans::None.egress(&frame), None);
            assert_eq!(Vlans::Access(11).egress(&frame), None);
        }
        let none = Membership::NONE;
        assert_eq!(Vlans::None.egress(&none), Some(Edit::Keep));
        assert_eq!(access.egress(&none), None);
        assert_eq!(trunk(Some(5)).egress(&none), None);
    }

    #[test]
    fn sets_have_what_may_be() {
        let set = VlanSet::new([0, 1, 63, 64, 4094, 4095, 65535]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [1, 63, 64, 4094]);
        assert!(!set.has(0) && !set.has(4095) && !set.has(65535));
        assert_eq!(trunk(Some(5)).all(), [10, 11, 64, 4094, 5]);
        assert_eq!(trunk(Some(10)).all(), [10, 11, 64, 4094]);
    }
}
