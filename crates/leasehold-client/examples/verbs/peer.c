/* A third-party peer of a Leasehold server: librdmacm and libibverbs, on any device that speaks iWARP.
 *
 *   cc -o peer peer.c -lrdmacm -libverbs
 *   peer ADDRESS PORT TOKEN
 *
 * TOKEN is what gRPC's OpenSession gave, in hexadecimal. Once connected it says "connected", and then does what each line
 * of its input says, with an answer for each:
 *
 *   write TAG OFFSET LENGTH SEED   an RDMA Write of LENGTH bytes, of which byte i is (i * 7 + SEED) modulo 251: "written"
 *   commit LEASE                   a Commit message behind them: "committed STATUS SIZE TEXT"
 *
 * docs/wire.md has the messages. Ends with its input, or with code 1 once something fails.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <rdma/rdma_cma.h>
#include <rdma/rdma_verbs.h>

/* siw registers no more than RLIMIT_MEMLOCK, for root as well: 8 MiB by default. */
enum { PIECE_MAX = 1 << 20, MESSAGE_MAX = 4096, TOKEN_BYTES = 16 };

static struct rdma_cm_id *id;
static struct ibv_mr *data, *message, *answer;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static struct ibv_mr *memory(size_t bytes) {
    void *at = calloc(1, bytes);
    struct ibv_mr *region = at ? rdma_reg_msgs(id, at, bytes) : NULL;
    if (!region) fail("cannot register memory");
    return region;
}

/* Waits for what was sent. */
static void sent(void) {
    struct ibv_wc done;
    int count = rdma_get_send_comp(id, &done);
    if (count < 0) fail("no completion");
    if (count == 0 || done.status != IBV_WC_SUCCESS) {
        fprintf(stderr, "a request failed: %s\n", ibv_wc_status_str(done.status));
        exit(1);
    }
}

static void connect_to(const char *address, const char *port, const uint8_t *token) {
    struct rdma_addrinfo hints = { .ai_port_space = RDMA_PS_TCP }, *found;
    if (rdma_getaddrinfo(address, port, &hints, &found)) fail("cannot resolve the address");
    struct ibv_qp_init_attr attributes = {
        .cap = { .max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1 },
        .qp_type = IBV_QPT_RC,
        .sq_sig_all = 1,
    };
    if (rdma_create_ep(&id, found, NULL, &attributes)) fail("cannot create an endpoint");
    rdma_freeaddrinfo(found);
    data = memory(PIECE_MAX);
    message = memory(MESSAGE_MAX);
    answer = memory(MESSAGE_MAX);
    struct rdma_conn_param parameters = {
        .private_data = token,
        .private_data_len = TOKEN_BYTES,
        .initiator_depth = 1,
        .responder_resources = 1,
    };
    if (rdma_connect(id, &parameters)) fail("cannot connect");
}

static void write_bytes(uint32_t tag, uint64_t offset, size_t length, unsigned seed) {
    uint8_t *bytes = data->addr;
    for (size_t at = 0; at < length; at += PIECE_MAX) {
        size_t piece = length - at < PIECE_MAX ? length - at : PIECE_MAX;
        for (size_t i = 0; i < piece; i++) bytes[i] = ((at + i) * 7 + seed) % 251;
        if (rdma_post_write(id, NULL, bytes, piece, data, 0, offset + at, tag)) fail("cannot write");
        sent();
    }
    puts("written");
}

static void commit(uint64_t lease) {
    struct __attribute__((packed)) {
        uint8_t kind, flags;
        uint16_t zero;
        uint32_t crc32c;
        uint64_t request, lease;
    } request = { .kind = 0x01, .request = htobe64(1), .lease = htobe64(lease) };
    struct __attribute__((packed)) {
        uint8_t kind, status, zero[6];
        uint64_t request, size;
        char text[];
    } *committed = answer->addr;
    memcpy(message->addr, &request, sizeof request);
    if (rdma_post_recv(id, NULL, answer->addr, MESSAGE_MAX, answer)) fail("cannot receive");
    if (rdma_post_send(id, NULL, message->addr, sizeof request, message, 0)) fail("cannot send");
    sent();
    struct ibv_wc done;
    if (rdma_get_recv_comp(id, &done) <= 0) fail("no answer");
    if (done.status != IBV_WC_SUCCESS || done.byte_len < sizeof *committed || committed->kind != 0x81) {
        fprintf(stderr, "no answer to a commit: %s, %u bytes\n", ibv_wc_status_str(done.status), done.byte_len);
        exit(1);
    }
    printf("committed %u %" PRIu64 " %.*s\n", committed->status, be64toh(committed->size),
           (int)(done.byte_len - sizeof *committed), committed->text);
}

int main(int count, char **words) {
    uint8_t token[TOKEN_BYTES];
    if (count != 4 || strlen(words[3]) != 2 * TOKEN_BYTES) {
        fprintf(stderr, "usage: peer ADDRESS PORT TOKEN\n");
        return 2;
    }
    for (int i = 0; i < TOKEN_BYTES; i++) {
        if (sscanf(words[3] + 2 * i, "%2hhx", &token[i]) != 1) return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    connect_to(words[1], words[2], token);
    puts("connected");
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        uint32_t tag;
        uint64_t offset, length, lease;
        unsigned seed;
        if (sscanf(line, "write %" SCNu32 " %" SCNu64 " %" SCNu64 " %u", &tag, &offset, &length, &seed) == 4) {
            write_bytes(tag, offset, length, seed);
        } else if (sscanf(line, "commit %" SCNu64, &lease) == 1) {
            commit(lease);
        } else {
            fprintf(stderr, "unknown: %s", line);
            return 1;
        }
    }
    rdma_disconnect(id);
    rdma_destroy_ep(id);
    return 0;
}
