"""The packed format read and written the slow, obvious way, from docs/format.md alone."""


def gap_symbols(elements: list[bytes], escape: int) -> list[int]:
    symbols, zeros = [], 0
    for element in elements:
        if not any(element):
            zeros += 1
            continue
        while zeros >= escape:
            symbols.append(escape)
            zeros -= escape
        symbols.append(zeros)
        zeros = 0
    return symbols


def encode(data: bytes, item: int) -> tuple[str, bytes, bytes]:
    """Encoding, index and values of the smallest encoding."""
    elements = [data[place : place + item] for place in range(0, len(data), item)]
    values = b"".join(element for element in elements if any(element))
    mask = bytearray(-(-len(elements) // 8))
    for place, element in enumerate(elements):
        if any(element):
            mask[place // 8] |= 1 << place % 8
    fours = gap_symbols(elements, 15)
    if len(fours) % 2:
        fours.append(15)
    trials = [
        ("raw", b"", data),
        ("bitmask", bytes(mask), values),
        ("gaps8", bytes(gap_symbols(elements, 255)), values),
        ("gaps4", bytes(low | high << 4 for low, high in zip(fours[::2], fours[1::2], strict=True)), values),
    ]
    return min(trials, key=lambda trial: len(trial[1]) + len(trial[2]))


def decode(encoding: str, index: bytes, values: bytes, size: int, item: int) -> bytes:
    """The original bytes."""
    if encoding == "raw":
        return values
    found = bytearray(size)
    places = []
    if encoding == "bitmask":
        places = [place for place in range(size // item) if index[place // 8] >> place % 8 & 1]
    else:
        escape = {"gaps8": 255, "gaps4": 15}[encoding]
        symbols = list(index) if escape == 255 else [half for byte in index for half in (byte & 15, byte >> 4)]
        position = 0
        for symbol in symbols:
            position += symbol
            if symbol != escape:
                places.append(position)
                position += 1
    for number, place in enumerate(places):
        found[place * item : (place + 1) * item] = values[number * item : (number + 1) * item]
    return bytes(found)
