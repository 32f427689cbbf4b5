//! The device as a whole: features, status, configuration space, resets, answers.

use std::os::fd::AsFd;

use super::bench::{Bench, memory};
use super::fake::{FakeDevice, MTU, VERSION_1};
use super::script::{ALL, BIT30, LEN, Script, addr, call, eventfd, polled, region, state};
use crate::notify::Call;
use crate::protocol::tests::vectors;
use crate::protocol::{ConfigSpace, Gate, Message, Reply, Request, info};

const FEATURES_OK: u64 = 8;

#[test]
fn features_are_a_subset() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    let Reply::U64(offered) = script.ask(&Request::GetFeatures, &[]) else {
        panic!("not a number");
    };
    assert_eq!(offered & BIT30, BIT30);
    for bit in 0..64 {
        let bits = 1u64 << bit;
        match offered & bits {
            0 => script.refused(&Request::SetFeatures(bits), &[]),
            _ => script.ok(&Request::SetFeatures(bits), &[]),
        }
    }
    assert_eq!(
        script.ask(&Request::GetProtocolFeatures, &[]),
        Reply::U64(ALL)
    );
    script.refused(&Request::SetProtocolFeatures(ALL | 2), &[]);
    script.refused(&Request::SetProtocolFeatures(1 << 63), &[]);
    assert_eq!(script.ask(&Request::GetQueueNum, &[]), Reply::U64(2));
}

#[test]
fn the_status_tells_whether_features_were_accepted() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    let status = |script: &mut Script| script.ask(&Request::GetStatus, &[]);
    assert_eq!(status(&mut script), Reply::U64(0));
    script.ok(&Request::SetStatus(3), &[]);
    script.refused(&Request::SetFeatures(1 << 60), &[]);
    script.ok(&Request::SetStatus(3 | FEATURES_OK), &[]);
    assert_eq!(status(&mut script), Reply::U64(3));
    script.ok(&Request::SetFeatures(VERSION_1 | BIT30), &[]);
    script.ok(&Request::SetStatus(3 | FEATURES_OK), &[]);
    assert_eq!(status(&mut script), Reply::U64(11));
    script.refused(&Request::SetStatus(0x100), &[]);
    assert_eq!(bench.device.seen().resets, 0);
}

#[test]
fn a_status_of_zero_resets_the_device() {
    reset(&Request::SetStatus(0));
}

#[test]
fn reset_device_resets_the_device() {
    reset(&Request::ResetDevice);
}

fn reset(how: &Request) {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, VERSION_1);
    script.set_memory(&memory(LEN));
    script.ok(&Request::SetStatus(15), &[]);
    script.ok(&call(0), &[eventfd().as_fd()]);
    script.start(0);
    script.ok(&Request::SetVringEnable(state(0, 1)), &[]);
    script.ok(how, &[]);
    assert_eq!(bench.device.seen().resets, 1);
    assert_eq!(bench.report().running_rings, 0);
    assert_eq!(script.ask(&Request::GetStatus, &[]), Reply::U64(0));
    // Rings begin anew: size, addresses, base, kick and being enabled are forgotten.
    script.ok(&Request::SetFeatures(VERSION_1 | BIT30), &[]);
    script.ok(&polled(0), &[]);
    script.ok(&Request::SetVringAddr(addr(0)), &[]);
    script.ok(&Request::SetVringEnable(state(0, 0)), &[]);
    script.ok(&Request::SetVringNum(state(0, 256)), &[]);
    assert_eq!(bench.report().running_rings, 0);
    // The connection goes on: memory and calls are still there.
    script.ok(&polled(0), &[]);
    let seen = bench.device.seen();
    assert_eq!(seen.rings[&0].base, 0);
    assert!(!seen.rings[&0].enabled);
    assert!(matches!(seen.rings[&0].call, Call::Event(_)));
    assert_eq!(seen.rings[&0].memory.regions().len(), 1);
}

#[test]
fn reset_owner_stops_rings_and_nothing_else() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, VERSION_1);
    script.ok(&Request::SetOwner, &[]);
    script.ok(&Request::SetOwner, &[]);
    script.set_memory(&memory(LEN));
    script.start(0);
    script.ok(&Request::SetVringEnable(state(0, 1)), &[]);
    script.ok(&Request::ResetOwner, &[]);
    assert_eq!(bench.report().running_rings, 0);
    assert_eq!(bench.device.seen().resets, 0);
    script.ok(&Request::SetOwner, &[]);
    script.ok(&polled(0), &[]);
    assert!(!bench.device.seen().rings[&0].enabled);
}

#[test]
fn configuration_space() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    let space = |offset, data: &[u8]| ConfigSpace {
        offset,
        flags: 0,
        data: data.to_vec(),
    };
    assert_eq!(
        script.ask(&Request::GetConfig(space(22, &[0, 0])), &[]),
        Reply::Config(space(22, &[22, 23]))
    );
    // An empty payload is how this one says no.
    for bad in [
        space(22, &[0; 3]),
        space(24, &[0]),
        space(u32::MAX, &[0; 2]),
        space(0, &[]),
        space(0, &[0; 4097]),
        ConfigSpace {
            flags: 2,
            ..space(0, &[0])
        },
    ] {
        assert_eq!(
            script.ask(&Request::GetConfig(bad.clone()), &[]),
            Reply::Empty
        );
        script.refused(&Request::SetConfig(bad.clone()), &[]);
        // A guest can cause this one, so it must not cost the connection.
        script.tell(&Request::SetConfig(bad), &[]);
    }
    script.ok(&Request::SetConfig(space(23, &[99])), &[]);
    assert_eq!(bench.device.seen().config[23], 99);
}

#[test]
fn mtu_and_rarp() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, MTU);
    script.ok(&Request::NetSetMtu(9000), &[]);
    assert_eq!(bench.device.seen().mtu, Some(9000));
    script.refused(&Request::NetSetMtu(67), &[]);
    script.refused(&Request::NetSetMtu(1 << 16), &[]);
    script.tell(&Request::NetSetMtu(67), &[]);
    script.ok(&Request::SendRarp(0x0605_0403_0201), &[]);
    assert_eq!(bench.device.seen().announced, Some([1, 2, 3, 4, 5, 6]));
    assert_eq!(bench.device.seen().mtu, Some(9000));
}

#[test]
fn one_reply_at_most() {
    let bench = Bench::new(2);
    let mut script = Script::new(&bench);
    // Not negotiated: the flag means nothing.
    let need_reply = |request: Request| request.to_message(true).to_bytes();
    script.raw(&need_reply(Request::SetOwner), &[]);
    script.raw(&need_reply(Request::GetFeatures), &[]);
    assert_eq!(script.message().unwrap().request, 1);
    // The message that negotiates it is answered already.
    script.ok(&Request::SetProtocolFeatures(ALL), &[]);
    script.ok(&Request::SetOwner, &[]);
}

#[test]
fn own_replies_come_once() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    for request in [
        Request::GetFeatures,
        Request::GetProtocolFeatures,
        Request::GetQueueNum,
        Request::GetMaxMemSlots,
        Request::GetStatus,
        Request::GetVringBase(state(0, 0)),
    ] {
        script.ask(&request, &[]);
        // A second reply would be taken for the answer to this.
        script.ok(&Request::SetOwner, &[]);
    }
}

#[test]
fn what_is_not_negotiated_is_refused() {
    let gated = [
        Request::GetConfig(ConfigSpace {
            offset: 0,
            flags: 0,
            data: vec![0],
        }),
        Request::ResetDevice,
        Request::GetMaxMemSlots,
        Request::AddMemReg(region(0)),
        Request::RemMemReg(region(0)),
        Request::SetStatus(1),
        Request::GetStatus,
        Request::SetLogFd,
        Request::PostcopyAdvise,
        Request::CheckDeviceState,
        Request::GpuSetSocket,
    ];
    for request in gated {
        let bench = Bench::new(2);
        let mut script = Script::new(&bench);
        // Only the answer to requests may be negotiated.
        script.ok(&Request::SetProtocolFeatures(8), &[]);
        match request {
            Request::GetConfig(_) => assert_eq!(script.ask(&request, &[]), Reply::Empty),
            Request::GetMaxMemSlots
            | Request::GetStatus
            | Request::PostcopyAdvise
            | Request::CheckDeviceState => {
                script.tell(&request, &[]);
                script.is_closed();
                continue;
            }
            _ => script.refused(&request, &[]),
        }
        script.ok(&Request::SetOwner, &[]);
    }
}

#[test]
fn unknown_requests_are_refused_or_end_the_connection() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    let unknown = |number| Request::Unknown {
        number,
        payload: vec![1, 2, 3],
    };
    script.refused(&unknown(46), &[]);
    script.refused(&unknown(u32::MAX), &[eventfd().as_fd()]);
    script.tell(&unknown(0), &[]);
    script.is_closed();
    let message = Message {
        request: 4,
        flags: 0x1001,
        payload: vec![],
    };
    let mut script = Script::negotiated(&bench, 0);
    script.raw(&message.to_bytes(), &[]);
    script.is_closed();
    bench.until("counted", |status| status.violations == 1);
    assert_eq!(bench.report().connections, 2);
}

#[test]
fn every_request_that_can_be_negotiated_has_a_handler() {
    let device = FakeDevice::new(8);
    for (number, request, _) in vectors() {
        let bench = Bench::with(device.clone());
        let mut script = Script::negotiated(&bench, VERSION_1);
        let open = match info(number).unwrap().gate {
            Gate::Open => true,
            Gate::Offered(bit) | Gate::Acked(bit) => bit.bits() & ALL != 0,
            Gate::Closed => false,
        };
        // Refused or not, by the transport or the device, but never for want of a handler.
        script.raw(&request.to_message(true).to_bytes(), &[]);
        let _ = script.message();
        let error = bench.report().last_error.unwrap_or_default();
        assert!(!error.contains("is unknown"), "{request:?}");
        assert_eq!(!error.contains("was not negotiated"), open, "{request:?}");
    }
}

#[test]
fn slots_run_out() {
    let bench = Bench::new(2);
    let mut script = Script::negotiated(&bench, 0);
    assert_eq!(script.ask(&Request::GetMaxMemSlots, &[]), Reply::U64(509));
    let file = memory(LEN);
    for nth in 0..509 {
        script.ok(&Request::AddMemReg(region(nth)), &[file.as_fd()]);
    }
    script.refused(&Request::AddMemReg(region(509)), &[file.as_fd()]);
    // Old front-ends send a descriptor here.
    script.ok(&Request::RemMemReg(region(508)), &[file.as_fd()]);
    script.ok(&Request::AddMemReg(region(509)), &[file.as_fd()]);
    assert_eq!(
        bench.device.seen().memory.as_ref().unwrap().regions().len(),
        509
    );
    // A whole table replaces them all.
    script.set_memory(&file);
    assert_eq!(
        bench.device.seen().memory.as_ref().unwrap().regions().len(),
        1
    );
}
