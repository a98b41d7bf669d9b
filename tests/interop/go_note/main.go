// Command go_note reads a log that casstore wrote, with code that casstore had no part in: the note and tlog packages of
// golang.org/x/mod, which verify Go's own checksum database.
//
// Usage: go_note DIRECTORY
//
// The directory holds request.json (see request), checkpoint, tile/… and proofs. The command verifies all of it, and
// prints one JSON object: what it read, and a note signed by itself, which the caller verifies in turn. Anything wrong
// is a message on standard error and exit code 1.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const tileHeight = 8

// request is what the caller wants verified, beside the files.
type request struct {
	Origin      string        `json:"origin"`
	LogKey      string        `json:"log_vkey"`
	CosignerKey string        `json:"cosigner_vkey"`
	SigningKey  string        `json:"skey"`
	Text        string        `json:"text"`
	Consistency []consistency `json:"consistency"`
	Proofs      []int64       `json:"proofs"`
}

type consistency struct {
	From     int64    `json:"from"`
	RootFrom []byte   `json:"root_from"`
	Proof    [][]byte `json:"proof"`
}

type answer struct {
	Size       int64  `json:"size"`
	Root       []byte `json:"root"`
	Records    int64  `json:"records"`
	CosignedAt uint64 `json:"cosigned_at_s"`
	Note       string `json:"note"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go_note DIRECTORY")
		os.Exit(2)
	}
	result, err := run(os.Args[1])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "go_note:", err)
		os.Exit(1)
	}
}

func run(directory string) (*answer, error) {
	var asked request
	data, err := os.ReadFile(filepath.Join(directory, "request.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &asked); err != nil {
		return nil, err
	}
	log, err := note.NewVerifier(asked.LogKey)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	witness, err := newCosigner(asked.CosignerKey)
	if err != nil {
		return nil, fmt.Errorf("cosigner key: %w", err)
	}
	signed, err := os.ReadFile(filepath.Join(directory, "checkpoint"))
	if err != nil {
		return nil, err
	}
	tree, err := openCheckpoint(signed, log, witness, asked.Origin)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	records, err := checkTiles(directory, tree)
	if err != nil {
		return nil, fmt.Errorf("tiles: %w", err)
	}
	for _, index := range asked.Proofs {
		if err := checkProofFile(directory, index, records[index], log, witness, asked.Origin); err != nil {
			return nil, fmt.Errorf("proof of %d: %w", index, err)
		}
	}
	for _, c := range asked.Consistency {
		var proof tlog.TreeProof
		for _, value := range c.Proof {
			proof = append(proof, tlog.Hash(value))
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, c.From, tlog.Hash(c.RootFrom)); err != nil {
			return nil, fmt.Errorf("consistency from %d: %w", c.From, err)
		}
	}
	signer, err := note.NewSigner(asked.SigningKey)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	own, err := note.Sign(&note.Note{Text: asked.Text}, signer)
	if err != nil {
		return nil, err
	}
	return &answer{tree.N, tree.Hash[:], int64(len(records)), witness.seconds, string(own)}, nil
}

// openCheckpoint verifies a note by both keys and reads the three lines of its text.
func openCheckpoint(signed []byte, log note.Verifier, witness *cosigner, origin string) (tlog.Tree, error) {
	opened, err := note.Open(signed, note.VerifierList(log, witness))
	if err != nil {
		return tlog.Tree{}, err
	}
	if len(opened.Sigs) != 2 || opened.Sigs[0].Name != log.Name() || opened.Sigs[1].Name != witness.Name() {
		return tlog.Tree{}, fmt.Errorf("signed by %v, not by the log and the cosigner", opened.Sigs)
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != origin {
		return tlog.Tree{}, fmt.Errorf("unexpected text %q", opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

// checkTiles reads every hash through tiles that are authenticated against the root, and holds the entries tiles
// against them; it returns the entries.
func checkTiles(directory string, tree tlog.Tree) ([][]byte, error) {
	hashes := tlog.TileHashReader(tree, &tileReader{directory})
	if root, err := tlog.TreeHash(tree.N, hashes); err != nil || root != tree.Hash {
		return nil, fmt.Errorf("the tiles hash to %v, the checkpoint says %v (%v)", root, tree.Hash, err)
	}
	var records [][]byte
	for n := int64(0); n*256 < tree.N; n++ {
		width := int(min(256, tree.N-n*256))
		path := strings.Replace(tilePath(tlog.Tile{H: tileHeight, L: 0, N: n, W: width}), "tile/0/", "tile/entries/", 1)
		data, err := os.ReadFile(filepath.Join(directory, path))
		if err != nil {
			return nil, err
		}
		for range width {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return nil, fmt.Errorf("%s is cut short", path)
			}
			end := 2 + int(binary.BigEndian.Uint16(data))
			records = append(records, data[2:end])
			data = data[end:]
		}
		if len(data) != 0 {
			return nil, fmt.Errorf("%s has %d bytes too many", path, len(data))
		}
	}
	for index, record := range records {
		proof, err := tlog.ProveRecord(tree.N, int64(index), hashes)
		if err != nil {
			return nil, err
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, int64(index), tlog.RecordHash(record)); err != nil {
			return nil, fmt.Errorf("entry %d: %w", index, err)
		}
	}
	return records, nil
}

// checkProofFile verifies DIRECTORY/<index>.tlog-proof against a record.
func checkProofFile(directory string, index int64, record []byte, log note.Verifier, witness *cosigner, origin string) error {
	data, err := os.ReadFile(filepath.Join(directory, fmt.Sprintf("%d.tlog-proof", index)))
	if err != nil {
		return err
	}
	head, signed, found := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" || lines[1] != fmt.Sprintf("index %d", index) {
		return fmt.Errorf("unexpected head %q", head)
	}
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	tree, err := openCheckpoint(signed, log, witness, origin)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(record))
}

// tilePath is the path of c2sp.org/tlog-tiles: that of tlog without the height.
func tilePath(tile tlog.Tile) string {
	return strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", tile.H), "tile/", 1)
}

type tileReader struct{ directory string }

func (r *tileReader) Height() int { return tileHeight }

func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(filepath.Join(r.directory, tilePath(tile)))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func (r *tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// cosigner verifies lines of type 0x04 (c2sp.org/tlog-cosignature), which the note package leaves to its callers.
type cosigner struct {
	name    string
	hash    uint32
	key     ed25519.PublicKey
	seconds uint64
}

func newCosigner(vkey string) (*cosigner, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("%q is no verifier key", vkey)
	}
	material, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(material) != 33 || material[0] != 4 {
		return nil, fmt.Errorf("%q is no cosigner's key", vkey)
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), material...))
	hash := binary.BigEndian.Uint32(sum[:])
	if parts[1] != fmt.Sprintf("%08x", hash) {
		return nil, fmt.Errorf("%q has the wrong key id", vkey)
	}
	return &cosigner{name: parts[0], hash: hash, key: ed25519.PublicKey(material[1:])}, nil
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.hash }

func (c *cosigner) Verify(text, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	c.seconds = binary.BigEndian.Uint64(signature)
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", c.seconds, text)
	return ed25519.Verify(c.key, []byte(message), signature[8:])
}
