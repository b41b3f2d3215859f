//! Devices, contexts, ports, GIDs and events of devices.

use std::ffi::{c_char, c_int};

use super::{
    Opaque, Unused, constants, ibv_cq, ibv_qp, ibv_qp_init_attr_ex, ibv_recv_wr, ibv_send_wr, ibv_wc, records,
};

records! {
    #[repr(align(8))]
    ibv_gid {
        raw: [u8; 16],
    }
    ibv_gid_entry {
        gid: ibv_gid,
        gid_index: u32,
        port_num: u32,
        gid_type: u32,
        ndev_ifindex: u32,
    }
    ibv_device {
        ops = "_ops": [Unused; 2],
        node_type: c_int,
        transport_type: c_int,
        name: [c_char; 64],
        dev_name: [c_char; 64],
        dev_path: [c_char; 256],
        ibdev_path: [c_char; 256],
    }
    ibv_device_attr {
        fw_ver: [c_char; 64],
        node_guid: u64,
        sys_image_guid: u64,
        max_mr_size: u64,
        page_size_cap: u64,
        vendor_id: u32,
        vendor_part_id: u32,
        hw_ver: u32,
        max_qp: c_int,
        max_qp_wr: c_int,
        device_cap_flags: u32,
        max_sge: c_int,
        max_sge_rd: c_int,
        max_cq: c_int,
        max_cqe: c_int,
        max_mr: c_int,
        max_pd: c_int,
        max_qp_rd_atom: c_int,
        max_ee_rd_atom: c_int,
        max_res_rd_atom: c_int,
        max_qp_init_rd_atom: c_int,
        max_ee_init_rd_atom: c_int,
        atomic_cap: u32,
        max_ee: c_int,
        max_rdd: c_int,
        max_mw: c_int,
        max_raw_ipv6_qp: c_int,
        max_raw_ethy_qp: c_int,
        max_mcast_grp: c_int,
        max_mcast_qp_attach: c_int,
        max_total_mcast_qp_attach: c_int,
        max_ah: c_int,
        max_fmr: c_int,
        max_map_per_fmr: c_int,
        max_srq: c_int,
        max_srq_wr: c_int,
        max_srq_sge: c_int,
        max_pkeys: u16,
        local_ca_ack_delay: u8,
        phys_port_cnt: u8,
    }
    ibv_port_attr {
        state: u32,
        max_mtu: u32,
        active_mtu: u32,
        gid_tbl_len: c_int,
        port_cap_flags: u32,
        max_msg_sz: u32,
        bad_pkey_cntr: u32,
        qkey_viol_cntr: u32,
        pkey_tbl_len: u16,
        lid: u16,
        sm_lid: u16,
        lmc: u8,
        max_vl_num: u8,
        sm_sl: u8,
        subnet_timeout: u8,
        init_type_reply: u8,
        active_width: u8,
        active_speed: u8,
        phys_state: u8,
        link_layer: u8,
        flags: u8,
        port_cap_flags2: u16,
    }
    ibv_context_ops {
        before_poll_cq = "_compat_query_device": [Unused; 11],
        poll_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int>,
        req_notify_cq: Option<unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int>,
        before_post_send = "_compat_cq_event": [Unused; 12],
        post_send: Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int>,
        post_recv: Option<unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int>,
        after_post_recv = "_compat_create_ah": [Unused; 5],
    }
    ibv_context {
        device: *mut ibv_device,
        ops: ibv_context_ops,
        cmd_fd: c_int,
        async_fd: c_int,
        num_comp_vectors: c_int,
        mutex: libc::pthread_mutex_t,
        abi_compat: Opaque,
    }
    // Grows at its beginning; `sz` says how far it reaches. It lies in front of an `ibv_context` whose `abi_compat` is all ones.
    verbs_context {
        query_port: Option<unsafe extern "C" fn(*mut ibv_context, u8, *mut ibv_port_attr, usize) -> c_int>,
        before_create_qp_ex = "advise_mr": [Unused; 32],
        create_qp_ex: Option<unsafe extern "C" fn(*mut ibv_context, *mut ibv_qp_init_attr_ex) -> *mut ibv_qp>,
        after_create_qp_ex = "get_srq_num": [Unused; 4],
        placeholder3 = "_ABI_placeholder3": u64,
        sz: usize,
        context: ibv_context,
    }
    ibv_async_event {
        element: Opaque,
        event_type: u32,
    }
}

constants! {
    IBV_TRANSPORT_IB: c_int = 0;

    IBV_GID_TYPE_IB: u32 = 0;
    IBV_GID_TYPE_ROCE_V1: u32 = 1;
    IBV_GID_TYPE_ROCE_V2: u32 = 2;

    IBV_PORT_NOP: u32 = 0;
    IBV_PORT_DOWN: u32 = 1;
    IBV_PORT_INIT: u32 = 2;
    IBV_PORT_ARMED: u32 = 3;
    IBV_PORT_ACTIVE: u32 = 4;
    IBV_PORT_ACTIVE_DEFER: u32 = 5;

    IBV_MTU_256: u32 = 1;
    IBV_MTU_512: u32 = 2;
    IBV_MTU_1024: u32 = 3;
    IBV_MTU_2048: u32 = 4;
    IBV_MTU_4096: u32 = 5;

    IBV_LINK_LAYER_UNSPECIFIED: u8 = 0;
    IBV_LINK_LAYER_INFINIBAND: u8 = 1;
    IBV_LINK_LAYER_ETHERNET: u8 = 2;

    IBV_QPF_GRH_REQUIRED: u8 = 1;

    IBV_EVENT_CQ_ERR: u32 = 0;
    IBV_EVENT_QP_FATAL: u32 = 1;
    IBV_EVENT_QP_REQ_ERR: u32 = 2;
    IBV_EVENT_QP_ACCESS_ERR: u32 = 3;
    IBV_EVENT_COMM_EST: u32 = 4;
    IBV_EVENT_SQ_DRAINED: u32 = 5;
    IBV_EVENT_PATH_MIG: u32 = 6;
    IBV_EVENT_PATH_MIG_ERR: u32 = 7;
    IBV_EVENT_DEVICE_FATAL: u32 = 8;
    IBV_EVENT_PORT_ACTIVE: u32 = 9;
    IBV_EVENT_PORT_ERR: u32 = 10;
    IBV_EVENT_LID_CHANGE: u32 = 11;
    IBV_EVENT_PKEY_CHANGE: u32 = 12;
    IBV_EVENT_SM_CHANGE: u32 = 13;
    IBV_EVENT_SRQ_ERR: u32 = 14;
    IBV_EVENT_SRQ_LIMIT_REACHED: u32 = 15;
    IBV_EVENT_QP_LAST_WQE_REACHED: u32 = 16;
    IBV_EVENT_CLIENT_REREGISTER: u32 = 17;
    IBV_EVENT_GID_CHANGE: u32 = 18;
    IBV_EVENT_WQ_FATAL: u32 = 19;
}
