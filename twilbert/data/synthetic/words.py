"""The words of the generated language: Spanish for the frequent ones, Spanish syllables in the tail.

Every word has one class and, except SHARED, one topic; its place in the list is its rank in Zipf's law. The language is
the same for every seed of a sample.
"""

from __future__ import annotations

import random

# Classes of words that all topics share. "¿" and the marks are words of their own.
SHARED: dict[str, tuple[str, ...]] = {
    name: tuple(words.split())
    for name, words in {
        "OPEN": """Hoy Ayer Anoche Mañana Ahora Siempre Atención Última Urgente Buenas Necesito Busco Recuerdo
            Confirmado Oficial Increíble Cuidado Vuelve Empieza Termina Llega Noticia Resumen Finalmente Hilo
            Dicen Parece Creo Sueño Domingo""",
        "QMARK": "¿",
        "QWORD": "Alguien Quién Cómo Cuándo Dónde Qué Cuál Cuánto",
        "MENTION": "user",
        "ANSWER": """sí no claro gracias exacto totalmente jamás obvio vale perdona tranquilo lógico ojalá depende
            imposible correcto mentira venga enhorabuena felicidades bravo efectivamente tampoco seguramente
            anda perfecto ánimo igualmente opino entiendo""",
        "VAYA": "Vaya Bueno Mira Oye Pues Total Hombre Dios",
        "DET_M": "el un este ese nuestro otro algún aquel",
        "DET_F": "la una esta esa nuestra otra alguna aquella",
        "ADV": """mucho siempre bien mejor así también nunca demasiado aquí casi todavía mal bastante peor allí
            deprisa""",
        "PREP": "de con en para por sin sobre contra entre desde hasta tras",
        "CONJ": "y pero que porque cuando & aunque si mientras donde",
        "COMMA": ",",
        "DOT": ".",
        "EXCL": "! !! !!!",
        "QEND": "?",
        "LAUGH": "jajaja jaja jajajaja jejeje xD",
        "EMOJI": "😂 ❤️ 😍 🤣 🙏 👏🏻 😭 🔥 😘 👇🏻 💪 🎉 😡 🤔 👍🏼 <3 🇪🇸 ⚽ 🙄 😎 👩‍👩‍👧 💔 🤦🏽‍♀️ ✨",
        "URL": "url",
    }.items()
}

# Topic: masculine nouns; feminine nouns; adjectives without their ending; verbs; hashtags.
_TOPICS = """
partido gol equipo jugador árbitro estadio portero entrenador | liga copa final pelota afición defensa cantera
 grada | épic nuev mític durísim | gana pierde juega marca celebra ficha entrena golea | #Fútbol #LaLiga #Gol #Derbi
gobierno ministro voto congreso presidente debate partidazo decreto | ley elección reforma oposición campaña
 democracia crisis moción | polític públic corrupt históric | vota aprueba promete dimite gobierna niega pacta
 miente | #Elecciones #Debate #Congreso #Política
disco concierto grupo cantante festival escenario ritmo videoclip | canción guitarra gira letra banda melodía
 batería entrada | clásic acústic roquer sonor | canta suena toca baila estrena graba compone escucha | #Música
 #NowPlaying #Concierto #Rock
actor director guion estreno cine personaje tráiler capítulo | película serie escena actriz trama temporada saga
 taquilla | romántic cómic dramátic maravillos | actúa rueda dirige emociona interpreta protagoniza filma aburre |
 #Cine #Series #Goya #Estreno
plato chef vino arroz restaurante postre queso desayuno | receta tortilla cocina cena sopa salsa ensalada cerveza |
 ric sabros saladit caser | come prueba sirve hornea mezcla huele invita | #Receta #Foodie #Cena #Tapas
examen profesor libro curso colegio aula apunte | clase universidad beca nota carrera tarea biblioteca maestra |
 aplicad estudios académic pesad | estudia enseña suspende aprende lee repasa explica | #Universidad #Examen
 #Educación #Lectura
móvil ordenador teclado código servidor error juego programa | pantalla aplicación red cámara consola nube
 contraseña | digital-nuev rápid modern electrónic | descarga falla actualiza conecta instala reinicia carga |
 #Tecnología #Móvil #Código #Gaming
viaje hotel tren avión aeropuerto destino mapa equipaje | playa maleta montaña isla ciudad ruta frontera excursión
 | lejan turístic exótic barat | viaja vuela visita reserva recorre aterriza camina descansa | #Viajes #Playa
 #Turismo #Verano
médico hospital virus paciente síntoma tratamiento enfermero cuerpo | vacuna salud consulta fiebre dieta enfermedad
 terapia farmacia | san médic crónic doloros | cura opera duele mejora contagia examina recupera | #Salud #Sanidad
 #Vacuna #Médicos
perro gato pájaro caballo animal cachorro veterinario pelaje | mascota jaula correa gata oveja tortuga manada
 adopción | tiern peludit doméstic abandonad | ladra maúlla muerde duerme salta adopta rescata corre | #Perros
 #Gatos #Adopta #Animales
abrigo vestido zapato bolso desfile diseñador pantalón estilo | moda falda camisa tienda rebaja tela prenda
 pasarela | elegantísim bonit car modernísim | viste compra luce estiliza combina cose vende diseña | #Moda #Look
 #Rebajas #Estilo
frío calor viento temporal invierno cielo pronóstico termómetro | lluvia nieve tormenta ola nube temperatura alerta
 niebla | helad mojad soleadísim húmed | llueve nieva sopla baja sube refresca amanece amenaza | #Tiempo #Lluvia
 #Frío #Aemet
"""

# Words of a class in each topic; generated words fill the lists above up to these.
TOPIC_SIZES = {"NOUN_M": 40, "NOUN_F": 40, "ADJ_M": 24, "ADJ_F": 24, "VERB": 36, "HASHTAG": 8}
_ONSETS = [*"bcdfglmnprstv", "br", "cr", "dr", "fl", "gr", "pl", "pr", "tr", "ch", "ll"]
_ENDINGS = {
    "NOUN_M": ["o", "or", "aje", "ón", "ismo"],
    "NOUN_F": ["a", "ción", "dad", "ura", "eza"],
    "VERB": ["a", "e"],
}


def topics() -> list[dict[str, list[str]]]:
    """Return the words of each topic by class, most frequent first; no word occurs twice."""
    rng = random.Random(20_200_914)
    used = {word for words in SHARED.values() for word in words}
    result = []
    for line in _TOPICS.strip().replace("\n ", " ").split("\n"):
        nouns_m, nouns_f, stems, verbs, tags = (part.split() for part in line.split("|"))
        topic: dict[str, list[str]] = {"ADJ_M": [], "ADJ_F": [], "HASHTAG": []}
        for stem in stems + [_stem(rng, 2) for _ in range(TOPIC_SIZES["ADJ_M"] - len(stems))]:
            while {f"{stem}o", f"{stem}a"} & used:
                stem = _stem(rng, 2)
            topic["ADJ_M"].append(f"{stem}o")
            topic["ADJ_F"].append(f"{stem}a")
            used |= {f"{stem}o", f"{stem}a"}
        for name, real in (("NOUN_M", nouns_m), ("NOUN_F", nouns_f), ("VERB", verbs)):
            topic[name] = []
            while len(topic[name]) < TOPIC_SIZES[name]:
                word = real.pop(0) if real else _stem(rng, rng.randint(1, 2)) + rng.choice(_ENDINGS[name])
                if word not in used:
                    topic[name].append(word)
                    used.add(word)
        for tag in [*tags, *(f"#{noun.capitalize()}" for noun in topic["NOUN_M"][8:])]:
            if tag not in used and len(topic["HASHTAG"]) < TOPIC_SIZES["HASHTAG"]:
                topic["HASHTAG"].append(tag)
                used.add(tag)
        result.append(topic)
    return result


def _stem(rng: random.Random, syllables: int) -> str:
    """Syllables that end in a consonant, to be followed by an ending."""
    body = "".join(rng.choice(_ONSETS) + rng.choice("aaeeioou") for _ in range(syllables))
    return body + rng.choice("lmnrstdvcbg")


def variants(word: str) -> list[str]:
    """Return other spellings of a word: drawn out, in capitals, in quotes, misspelt; none of short ones and marks."""
    if len(word) < 4 or not word.isalpha():
        return []
    vowel = max(word.rfind(v) for v in "aeiouáéíóú")
    forms = [word.upper(), f'"{word}"', word[:2] + word[3:], word[:-2] + word[-1] + word[-2]]
    if vowel >= 0:
        forms += [word[:vowel] + word[vowel] * n + word[vowel + 1 :] for n in (3, 5)]
    return forms
