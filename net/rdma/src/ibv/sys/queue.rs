//! Protection domains, registered memory, completion queues and queue pairs.

use std::ffi::{c_int, c_void};

use super::{Opaque, constants, ibv_context, ibv_gid, records};

records! {
    ibv_pd {
        context: *mut ibv_context,
        handle: u32,
    }
    ibv_mr {
        context: *mut ibv_context,
        pd: *mut ibv_pd,
        addr: *mut c_void,
        length: usize,
        handle: u32,
        lkey: u32,
        rkey: u32,
    }
    ibv_comp_channel {
        context: *mut ibv_context,
        fd: c_int,
        refcnt: c_int,
    }
    ibv_cq {
        context: *mut ibv_context,
        channel: *mut ibv_comp_channel,
        cq_context: *mut c_void,
        handle: u32,
        cqe: c_int,
        mutex: libc::pthread_mutex_t,
        cond: libc::pthread_cond_t,
        comp_events_completed: u32,
        async_events_completed: u32,
    }
    ibv_qp {
        context: *mut ibv_context,
        qp_context: *mut c_void,
        pd: *mut ibv_pd,
        send_cq: *mut ibv_cq,
        recv_cq: *mut ibv_cq,
        srq: Opaque,
        handle: u32,
        qp_num: u32,
        state: u32,
        qp_type: u32,
        mutex: libc::pthread_mutex_t,
        cond: libc::pthread_cond_t,
        events_completed: u32,
    }
    ibv_qp_cap {
        max_send_wr: u32,
        max_recv_wr: u32,
        max_send_sge: u32,
        max_recv_sge: u32,
        max_inline_data: u32,
    }
    ibv_qp_init_attr {
        qp_context: *mut c_void,
        send_cq: *mut ibv_cq,
        recv_cq: *mut ibv_cq,
        srq: Opaque,
        cap: ibv_qp_cap,
        qp_type: u32,
        sq_sig_all: c_int,
    }
    ibv_rx_hash_conf {
        rx_hash_function: u8,
        rx_hash_key_len: u8,
        rx_hash_key: *mut u8,
        rx_hash_fields_mask: u64,
    }
    ibv_qp_init_attr_ex {
        qp_context: *mut c_void,
        send_cq: *mut ibv_cq,
        recv_cq: *mut ibv_cq,
        srq: Opaque,
        cap: ibv_qp_cap,
        qp_type: u32,
        sq_sig_all: c_int,
        comp_mask: u32,
        pd: *mut ibv_pd,
        xrcd: Opaque,
        create_flags: u32,
        max_tso_header: u16,
        rwq_ind_tbl: Opaque,
        rx_hash_conf: ibv_rx_hash_conf,
        source_qpn: u32,
        send_ops_flags: u64,
    }
    ibv_global_route {
        dgid: ibv_gid,
        flow_label: u32,
        sgid_index: u8,
        hop_limit: u8,
        traffic_class: u8,
    }
    ibv_ah_attr {
        grh: ibv_global_route,
        dlid: u16,
        sl: u8,
        src_path_bits: u8,
        static_rate: u8,
        is_global: u8,
        port_num: u8,
    }
    ibv_qp_attr {
        qp_state: u32,
        cur_qp_state: u32,
        path_mtu: u32,
        path_mig_state: u32,
        qkey: u32,
        rq_psn: u32,
        sq_psn: u32,
        dest_qp_num: u32,
        qp_access_flags: u32,
        cap: ibv_qp_cap,
        ah_attr: ibv_ah_attr,
        alt_ah_attr: ibv_ah_attr,
        pkey_index: u16,
        alt_pkey_index: u16,
        en_sqd_async_notify: u8,
        sq_draining: u8,
        max_rd_atomic: u8,
        max_dest_rd_atomic: u8,
        min_rnr_timer: u8,
        port_num: u8,
        timeout: u8,
        retry_cnt: u8,
        rnr_retry: u8,
        alt_port_num: u8,
        alt_timeout: u8,
        rate_limit: u32,
    }
}

constants! {
    IBV_ACCESS_LOCAL_WRITE: u32 = 1;
    IBV_ACCESS_REMOTE_WRITE: u32 = 1 << 1;
    IBV_ACCESS_REMOTE_READ: u32 = 1 << 2;

    IBV_QPT_RC: u32 = 2;

    IBV_QP_INIT_ATTR_PD: u32 = 1 << 0;
    IBV_QP_INIT_ATTR_SEND_OPS_FLAGS: u32 = 1 << 6;
    IBV_QP_EX_WITH_RDMA_WRITE: u64 = 1 << 0;
    IBV_QP_EX_WITH_SEND: u64 = 1 << 2;
    IBV_QP_EX_WITH_RDMA_READ: u64 = 1 << 4;

    IBV_QP_STATE: u32 = 1 << 0;
    IBV_QP_ACCESS_FLAGS: u32 = 1 << 3;
    IBV_QP_PKEY_INDEX: u32 = 1 << 4;
    IBV_QP_PORT: u32 = 1 << 5;
    IBV_QP_AV: u32 = 1 << 7;
    IBV_QP_PATH_MTU: u32 = 1 << 8;
    IBV_QP_TIMEOUT: u32 = 1 << 9;
    IBV_QP_RETRY_CNT: u32 = 1 << 10;
    IBV_QP_RNR_RETRY: u32 = 1 << 11;
    IBV_QP_RQ_PSN: u32 = 1 << 12;
    IBV_QP_MAX_QP_RD_ATOMIC: u32 = 1 << 13;
    IBV_QP_MIN_RNR_TIMER: u32 = 1 << 15;
    IBV_QP_SQ_PSN: u32 = 1 << 16;
    IBV_QP_MAX_DEST_RD_ATOMIC: u32 = 1 << 17;
    IBV_QP_DEST_QPN: u32 = 1 << 20;

    IBV_QPS_RESET: u32 = 0;
    IBV_QPS_INIT: u32 = 1;
    IBV_QPS_RTR: u32 = 2;
    IBV_QPS_RTS: u32 = 3;
}
