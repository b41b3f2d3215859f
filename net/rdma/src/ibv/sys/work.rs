//! Work requests, the queue pair that takes them call by call, and completions.

use std::ffi::{c_int, c_void};

use super::{Unused, constants, ibv_qp, records};

records! {
    ibv_sge {
        addr: u64,
        length: u32,
        lkey: u32,
    }
    ibv_send_wr {
        wr_id: u64,
        next: *mut ibv_send_wr,
        sg_list: *mut ibv_sge,
        num_sge: c_int,
        opcode: u32,
        send_flags: u32,
        imm_data: u32,
        remote_addr = "wr.rdma.remote_addr": u64,
        // Of a union that atomic operations make longer.
        rkey = "wr.rdma.rkey": u32,
        unused_swap = "wr.atomic.swap": [Unused; 2],
        remote_srqn = "qp_type.xrc.remote_srqn": u32,
        // Of memory windows and segmentation.
        unused_bind = "bind_mw": [Unused; 6],
    }
    ibv_recv_wr {
        wr_id: u64,
        next: *mut ibv_recv_wr,
        sg_list: *mut ibv_sge,
        num_sge: c_int,
    }
    ibv_wc {
        wr_id: u64,
        status: u32,
        opcode: u32,
        vendor_err: u32,
        byte_len: u32,
        imm_data: u32,
        qp_num: u32,
        src_qp: u32,
        wc_flags: u32,
        pkey_index: u16,
        slid: u16,
        sl: u8,
        dlid_path_bits: u8,
    }
    ibv_qp_ex {
        qp_base: ibv_qp,
        comp_mask: u64,
        wr_id: u64,
        wr_flags: u32,
        before_rdma_read = "wr_atomic_cmp_swp": [Unused; 4],
        wr_rdma_read: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64)>,
        wr_rdma_write: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64)>,
        wr_rdma_write_imm: Unused,
        wr_send: Option<unsafe extern "C" fn(*mut ibv_qp_ex)>,
        before_inline = "wr_send_imm": [Unused; 5],
        wr_set_inline_data: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut c_void, usize)>,
        wr_set_inline_data_list: Unused,
        wr_set_sge: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u32)>,
        wr_set_sge_list: Unused,
        wr_start: Option<unsafe extern "C" fn(*mut ibv_qp_ex)>,
        wr_complete: Option<unsafe extern "C" fn(*mut ibv_qp_ex) -> c_int>,
        // And more in newer versions: the library allocates it.
        wr_abort: Unused,
    }
}

constants! {
    IBV_WR_RDMA_WRITE: u32 = 0;
    IBV_WR_SEND: u32 = 2;
    IBV_WR_RDMA_READ: u32 = 4;

    IBV_SEND_SIGNALED: u32 = 1 << 1;
    IBV_SEND_INLINE: u32 = 1 << 3;

    IBV_WC_SUCCESS: u32 = 0;
    IBV_WC_LOC_LEN_ERR: u32 = 1;
    IBV_WC_LOC_PROT_ERR: u32 = 4;
    IBV_WC_WR_FLUSH_ERR: u32 = 5;
    IBV_WC_REM_INV_REQ_ERR: u32 = 9;
    IBV_WC_REM_ACCESS_ERR: u32 = 10;
    IBV_WC_RETRY_EXC_ERR: u32 = 12;
    IBV_WC_RNR_RETRY_EXC_ERR: u32 = 13;
}
